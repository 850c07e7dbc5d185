'use strict';

// Sections of an encoded AMQP message. The broker keeps a message as the sections that its sender encoded, so
// that every value keeps its AMQP type (an int64 stays one), and puts header and annotations around them anew
// for each delivery.

const { message, types } = require('rhea');

const HEADER = 0x70;
const DELIVERY_ANNOTATIONS = 0x71;
const MESSAGE_ANNOTATIONS = 0x72;
const APPLICATION_PROPERTIES = 0x74;

const code = (section) => section.descriptor.value;

// split parses an encoded message and returns what belongs to the sender: all but header and annotations.
function split(buffer) {
  const reader = new types.Reader(buffer);
  const sections = [];
  while (reader.remaining()) sections.push(reader.read());
  return sections.filter((s) => ![HEADER, DELIVERY_ANNOTATIONS, MESSAGE_ANNOTATIONS].includes(code(s)));
}

// join encodes a message for a delivery. annotations maps names to typed values.
function join(sections, deliveryCount, annotations) {
  const writer = new types.Writer();
  writer.write(message.header({ durable: true, delivery_count: deliveryCount }).described());
  writer.write(types.described(types.wrap_ulong(MESSAGE_ANNOTATIONS), types.wrap_symbolic_map(annotations)));
  for (const s of sections) writer.write(s);
  return writer.toBuffer();
}

// withProperties returns the sections with string application properties added or replaced.
function withProperties(sections, added) {
  const old = sections.find((s) => code(s) === APPLICATION_PROPERTIES);
  const items = [];
  for (let i = 0; old && i < old.value.length; i += 2) {
    if (!(old.value[i].value in added)) items.push(old.value[i], old.value[i + 1]);
  }
  for (const [name, value] of Object.entries(added)) items.push(types.wrap_string(name), types.wrap_string(value));
  const section = types.described(types.wrap_ulong(APPLICATION_PROPERTIES), types.Map32(items));
  const rest = sections.filter((s) => code(s) !== APPLICATION_PROPERTIES);
  const body = rest.findIndex((s) => code(s) > APPLICATION_PROPERTIES);
  rest.splice(body < 0 ? rest.length : body, 0, section);
  return rest;
}

module.exports = { split, join, withProperties };
