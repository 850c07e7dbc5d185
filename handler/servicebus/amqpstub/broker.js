'use strict';

// A stand-in for a Service Bus namespace: AMQP 1.0 on one loopback port, control over HTTP on another
// (control.js). It prints one line of JSON with both ports when it is ready and ends when stdin closes, so that
// it never outlives the test that started it.

const rhea = require('rhea');
const crypto = require('crypto');
const { Queue, DEAD_LETTER, lockToken } = require('./queue.js');
const control = require('./control.js');

const { types } = rhea;
const BATCH_FORMAT = 0x80013700;
const MANAGEMENT = '/$management';

// rhea hands on a single message only as decoded; the broker stores what was encoded.
const decode = rhea.message.decode;
rhea.message.decode = (buffer) => Object.defineProperty(decode(buffer), 'raw', { value: buffer });

// state is all that the control channel reads and writes.
const state = {
  queues: new Map(), // by lower-case name; a dead letter queue is found through its parent
  faults: [],
  settings: {
    paused: false, // sends wait, unanswered, until it is false again
    idleDetachMs: 0, // links of senders without a send for so long are detached; 0: never
    keyName: '', // with key: tokens must be signed with it
    key: '',
  },
  tokens: [], // every put-token: {audience, type, token}
  stats: { connections: 0, attached: 0, transfers: 0, received: 0, accepted: 0, idleDetached: 0 },
  waiting: [], // sends held back by paused
};

const connections = new Set();
state.open = () => connections.size;
state.disconnectAll = () => [...connections].forEach(disconnect);

function findQueue(address = '') {
  const name = address.toLowerCase();
  if (!name.endsWith(DEAD_LETTER)) return state.queues.get(name);
  const parent = state.queues.get(name.slice(0, -DEAD_LETTER.length));
  return parent && parent.deadLetters;
}
state.findQueue = findQueue;

// fault takes the next fault planned for an event (token, attach, send) on an address. Faults are used in the
// order in which they were planned; {kind: "none"} lets one event pass.
function fault(on, address) {
  const i = state.faults.findIndex((f) => f.on === on && (!f.queue || f.queue.toLowerCase() === address.toLowerCase()));
  if (i < 0) return { kind: 'none' };
  const f = state.faults[i];
  if (f.times > 1) f.times--;
  else if (f.times !== 0) state.faults.splice(i, 1); // times 0: until the faults are cleared
  return f;
}

const error = (f) => ({ condition: f.condition || 'amqp:internal-error', description: f.description || 'planned fault' });
const alive = (link) => link.is_open() && !link.connection.is_closed();

// disconnect drops the connection without a word, as a failing gateway does.
function disconnect(connection) {
  const { socket } = connection;
  connection.abort_socket(socket);
  socket.on('error', () => {});
}

const container = rhea.create_container({ id: 'amqpstub' });
container.sasl_server_mechanisms.enable_anonymous();
container.sasl_server_mechanisms.enable_plain(() => true);
const server = container.listen({
  host: '127.0.0.1',
  port: 0,
  tcp_no_delay: true,
  max_frame_size: 65536,
  idle_time_out: 120000,
  receiver_options: { autoaccept: false, credit_window: 1000 },
  sender_options: { treat_modified_as_released: false },
});

container.on('connection_open', ({ connection }) => {
  connection.audiences = new Set();
  connection.replies = new Map(); // reply address -> the link to answer on
  connections.add(connection);
  state.stats.connections++;
});
for (const event of ['connection_close', 'connection_error', 'disconnected']) {
  container.on(event, ({ connection }) => connections.delete(connection));
}
for (const event of ['error', 'protocol_error', 'session_error', 'sender_error', 'receiver_error']) {
  container.on(event, () => {}); // the peer's affair; without a listener rhea would end the process
}

// ---- Attaching ----

// refuse answers an attach with one that has no terminus, and the reason in a detach.
function refuse(link, condition, description) {
  link.close({ condition, description });
}

// admit decides whether a link to address may be attached, and says why not.
function admit(link, address) {
  const f = fault('attach', address);
  if (f.kind === 'silent') return { silent: true };
  if (f.kind !== 'none') return error(f);
  const entity = address.endsWith(MANAGEMENT) ? address.slice(0, -MANAGEMENT.length) : address;
  if (![...link.connection.audiences].some((a) => new URL(a).pathname.slice(1).toLowerCase() === address.toLowerCase())) {
    return { condition: 'amqp:unauthorized-access', description: `Unauthorized access. No token for '${address}'.` };
  }
  const queue = findQueue(entity);
  if (!queue) {
    return { condition: 'amqp:not-found', description: `The messaging entity 'sb://stub/${entity}' could not be found.` };
  }
  return { queue };
}

// A client that sends attaches a sender: here that is a receiver.
container.on('receiver_open', ({ receiver }) => {
  const { address } = receiver.target;
  const { attach } = receiver.local;
  attach.snd_settle_mode = receiver.snd_settle_mode;
  attach.rcv_settle_mode = receiver.rcv_settle_mode;
  if (address !== '$cbs') {
    const { queue, silent, condition, description } = admit(receiver, address);
    if (silent) {
      receiver.state.open_requests = 0; // neither attach nor credit is ever written
      receiver.issue_flow = false;
      return;
    }
    if (!queue) return refuse(receiver, condition, description);
    attach.max_message_size = queue.options.maxMessageBytes;
    if (queue.options.maxBatchBytes) {
      attach.properties = { 'com.microsoft:max-message-batch-size': types.wrap_ulong(queue.options.maxBatchBytes) };
    }
    if (!address.endsWith(MANAGEMENT)) state.stats.attached++;
  }
  receiver.set_source({ address: receiver.source && receiver.source.address });
  receiver.set_target({ address });
  receiver.lastUsed = Date.now();
});

// A client that receives attaches a receiver: here that is a sender.
container.on('sender_open', ({ sender }) => {
  const { address, filter } = sender.source;
  const { attach } = sender.local;
  attach.snd_settle_mode = sender.snd_settle_mode;
  attach.rcv_settle_mode = sender.rcv_settle_mode;
  let queue;
  if (address !== '$cbs') {
    let condition, description;
    ({ queue, condition, description } = admit(sender, address));
    if (!queue) return refuse(sender, condition || 'amqp:internal-error', description);
  }
  if (queue && !address.endsWith(MANAGEMENT)) {
    if (filter && filter['com.microsoft:session-filter'] !== undefined) {
      return refuse(sender, 'amqp:not-implemented', 'The stub has no session receivers.');
    }
    if (queue.options.requiresSession) {
      return refuse(sender, 'amqp:not-allowed', 'It is not possible for an entity that requires sessions to create a non-sessionful message receiver.');
    }
    sender.queue = queue;
    queue.receivers.add(sender);
  } else {
    sender.connection.replies.set(sender.target.address, sender);
  }
  sender.set_source({ address });
  sender.set_target({ address: sender.target.address });
});

container.on('sendable', ({ sender }) => sender.queue && sender.queue.pump());
container.on('sender_close', ({ sender }) => sender.queue && sender.queue.receivers.delete(sender));
container.on('disconnected', ({ connection }) => connection.each_sender((s) => s.queue && s.queue.receivers.delete(s)));

// ---- Sending ----

container.on('message', (context) => {
  const { address } = context.receiver.target;
  if (address === '$cbs') return putToken(context);
  if (address.endsWith(MANAGEMENT)) return manage(context, findQueue(address.slice(0, -MANAGEMENT.length)));
  context.receiver.lastUsed = Date.now();
  state.stats.transfers++;
  if (state.settings.paused) state.waiting.push(context);
  else receive(context);
});

state.resume = () => state.waiting.splice(0).forEach(receive);

function receive({ receiver, delivery, message }) {
  if (!alive(receiver)) return; // sent to a link that was detached meanwhile: lost, and the sender knows
  const { address } = receiver.target;
  const f = fault('send', address);
  switch (f.kind) {
    case 'silent':
      return;
    case 'disconnect': // before anything is stored
      return disconnect(receiver.connection);
    case 'detach':
      return receiver.close(error(f));
    case 'reject':
      return reject(delivery, error(f));
    case 'slow':
      setTimeout(() => alive(receiver) && store(receiver, delivery, message), f.ms);
      return;
    case 'lose-ack': // stored, but the sender never hears of it
      store(receiver, null, message);
      return disconnect(receiver.connection);
  }
  store(receiver, delivery, message);
}

// reject answers in a turn of its own: rhea joins the outcomes of neighbouring deliveries into one frame, and takes a
// rejection next to an acceptance for another acceptance.
function reject(delivery, why) {
  setImmediate(() => delivery.reject(why));
}

// store puts what came in one transfer, a message or a batch, into the queue and accepts it.
function store(receiver, delivery, message) {
  const queue = findQueue(receiver.target.address);
  if (!queue) return receiver.close({ condition: 'amqp:not-found', description: 'The messaging entity was deleted.' });
  let encoded = [message.raw];
  if (Buffer.isBuffer(message)) { // a format of its own: each data section is one encoded message
    const { content, multiple } = decode(message).body;
    encoded = multiple ? content : [content];
  }
  if (queue.options.requiresSession && encoded.some((b) => decode(b).group_id === undefined)) {
    return delivery && reject(delivery, {
      condition: 'amqp:not-allowed',
      description: 'The SessionId was not set on a message, and it cannot be sent to the entity. Entities that have session support enabled can only receive messages that have the SessionId set to a valid value.',
    });
  }
  for (const b of encoded) queue.add(b);
  state.stats.received += encoded.length;
  if (delivery) {
    delivery.accept();
    state.stats.accepted++;
  }
}

// Links without a send are detached as Service Bus does after ten minutes; keep-alive frames do not help.
function detachIdle() {
  const { idleDetachMs } = state.settings;
  if (!idleDetachMs) return;
  for (const connection of connections) {
    connection.each_receiver((r) => {
      const { address } = r.target;
      if (!r.is_open() || address === '$cbs' || address.endsWith(MANAGEMENT)) return;
      if (Date.now() - r.lastUsed < idleDetachMs) return;
      state.stats.idleDetached++;
      r.close({
        condition: 'amqp:link:detach-forced',
        description: `The link '${r.name}' is force detached. Code: publisher(link1). Details: AmqpMessagePublisher.IdleTimerExpired: Idle timeout: 00:10:00.`,
      });
    });
  }
}
setInterval(detachIdle, 10);

// ---- Settling ----

// settle answers the outcome of a peek-locked delivery: with the same outcome when the lock still held.
function settle({ sender, delivery }, outcome, apply) {
  if (!sender.queue || delivery.done) return;
  delivery.done = true;
  const m = sender.queue.unlock(lockToken(delivery.tag));
  const lost = { condition: 'com.microsoft:message-lock-lost', description: 'The lock supplied is invalid. Either the lock expired, or the message has already been removed from the queue.' };
  if (m) apply(sender.queue, m);
  delivery.update(true, m ? outcome : rhea.message.rejected({ error: lost }).described());
  delivery.remote_settled = true; // the client sends nothing more about it
}

container.on('accepted', (c) => settle(c, rhea.message.accepted().described(), (q, m) => q.complete(m)));
container.on('released', (c) => settle(c, rhea.message.released().described(), (q, m) => q.release(m)));
container.on('modified', (c) => settle(c, rhea.message.modified({}).described(), (q, m) => q.abandon(m))); // deferring is not built
container.on('rejected', (c) => {
  const { error: e } = c.delivery.remote_state;
  const info = (e && e.info) || {};
  settle(c, rhea.message.rejected({}).described(), (q, m) => q.deadLetter(m, info.DeadLetterReason, info.DeadLetterErrorDescription));
});

// ---- Requests: $cbs and <queue>/$management ----

function reply({ connection, message, delivery }, status, description, body = null) {
  delivery.accept();
  const link = connection.replies.get(message.reply_to);
  if (!link || !link.is_open()) return;
  link.send({
    correlation_id: message.message_id,
    application_properties: { 'status-code': types.wrap_int(status), 'status-description': description },
    body,
  });
}

function putToken(context) {
  const { name: audience, type } = context.message.application_properties;
  const token = context.message.body;
  state.tokens.push({ audience, type, token });
  const f = fault('token', audience);
  if (f.kind === 'silent') return;
  if (f.kind !== 'none') return reply(context, f.status || 401, f.description || 'planned fault');
  const refused = state.settings.key && checkSignature(token);
  if (refused) return reply(context, 401, refused);
  context.connection.audiences.add(audience);
  reply(context, 202, 'Accepted');
}

// checkSignature verifies a shared access signature and returns what is wrong with it.
function checkSignature(token) {
  const [kind, query] = String(token).split(' ');
  const fields = new Map((query || '').split('&').map((f) => [f.slice(0, f.indexOf('=')), f.slice(f.indexOf('=') + 1)]));
  if (kind !== 'SharedAccessSignature' || fields.get('skn') !== state.settings.keyName) return 'InvalidSignature: The token has an invalid signature.';
  const signed = crypto.createHmac('sha256', state.settings.key).update(`${fields.get('sr')}\n${fields.get('se')}`).digest('base64');
  if (signed !== decodeURIComponent(fields.get('sig'))) return 'InvalidSignature: The token has an invalid signature.';
  if (Number(fields.get('se')) * 1000 < Date.now()) return "ExpiredToken: The token is expired. Expiration time: '" + new Date(fields.get('se') * 1000).toISOString() + "'.";
  return '';
}

const hex = (uuid) => Buffer.from(uuid).toString('hex');
const list = (map, items) => ({ [map]: items });

function manage(context, queue) {
  const { operation } = context.message.application_properties;
  const { body } = context.message;
  switch (operation) {
    case 'com.microsoft:renew-lock': {
      const held = body['lock-tokens'].map((t) => queue.locked.get(hex(t)));
      if (held.includes(undefined)) return reply(context, 410, 'The lock supplied is invalid.');
      const ends = held.map((m) => queue.lock(m).getTime());
      return reply(context, 200, 'OK', list('expirations', types.wrap_array(ends, 0x83)));
    }
    case 'com.microsoft:update-disposition': {
      const held = body['lock-tokens'].map((t) => queue.unlock(hex(t)));
      if (held.includes(undefined)) return reply(context, 410, 'The lock supplied is invalid.');
      for (const m of held) {
        if (body['disposition-status'] === 'completed') queue.complete(m);
        else if (body['disposition-status'] === 'suspended') queue.deadLetter(m, body['deadletter-reason'], body['deadletter-description']);
        else queue.abandon(m);
      }
      return reply(context, 200, 'OK', {});
    }
    case 'com.microsoft:peek-message': {
      const found = [...queue.messages.values()].filter((m) => m.sequence >= body['from-sequence-number']);
      const messages = found.slice(0, body['message-count']).map((m) => ({ message: queue.encode(m) }));
      if (!messages.length) return reply(context, 204, 'No content', {});
      return reply(context, 200, 'OK', list('messages', messages));
    }
    case 'com.microsoft:schedule-message': {
      const numbers = body.messages.map(({ message }) => queue.add(message));
      return reply(context, 200, 'OK', list('sequence-numbers', types.wrap_array(numbers, 0x81)));
    }
    case 'com.microsoft:cancel-scheduled-message':
      if (!body['sequence-numbers'].every((n) => queue.cancel(n))) return reply(context, 404, 'The scheduled message was not found.');
      return reply(context, 200, 'OK', {});
  }
  reply(context, 501, `The stub does not know ${operation}.`);
}

// ---- Start and end ----

server.on('listening', () => {
  control.listen(state, (port) => {
    process.stdout.write(JSON.stringify({ amqp: server.address().port, control: port }) + '\n');
  });
});
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
