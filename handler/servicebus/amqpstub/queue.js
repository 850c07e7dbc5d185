'use strict';

// Queue is one Service Bus queue in memory: peek-lock with expiring locks, delivery count, dead letters,
// duplicate detection by message id, scheduled messages.

const crypto = require('crypto');
const { message, types } = require('rhea');
const sections = require('./sections.js');

const DEAD_LETTER = '/$deadletterqueue';

const defaults = {
  lockMs: 60000,
  maxDeliveryCount: 10,
  duplicateDetection: false,
  duplicateWindowMs: 10 * 60000,
  requiresSession: false,
  maxMessageBytes: 256 * 1024,
  maxBatchBytes: 0, // announced as com.microsoft:max-message-batch-size when set
};

class Queue {
  constructor(name, options = {}, parent) {
    this.name = name;
    this.options = { ...defaults, ...options };
    this.messages = new Map(); // by sequence number, in the order of arrival
    this.locked = new Map(); // by lock token, in hex
    this.seen = new Map(); // message id -> when it was accepted
    this.receivers = new Set();
    this.sequence = 0;
    this.duplicates = 0;
    this.pumping = false;
    this.parent = parent; // of a dead letter queue
    if (!parent) this.deadLetters = new Queue(name + DEAD_LETTER, { lockMs: this.options.lockMs }, this);
  }

  // add stores one encoded message and returns its sequence number, or 0 for a duplicate, which is accepted
  // and dropped.
  add(buffer, scheduledFor) {
    const decoded = message.decode(buffer);
    const now = Date.now();
    if (this.options.duplicateDetection) {
      for (const [id, at] of this.seen) {
        if (now - at < this.options.duplicateWindowMs) break;
        this.seen.delete(id);
      }
      if (this.seen.has(decoded.message_id)) {
        this.duplicates++;
        return 0;
      }
      this.seen.set(decoded.message_id, now);
    }
    const scheduled = scheduledFor || (decoded.message_annotations || {})['x-opt-scheduled-enqueue-time'];
    const m = {
      sequence: ++this.sequence,
      id: decoded.message_id,
      sections: sections.split(buffer),
      enqueuedAt: new Date(now),
      deliveryCount: 0,
      state: 'active',
    };
    this.messages.set(m.sequence, m);
    if (scheduled && scheduled > m.enqueuedAt) {
      m.state = 'scheduled';
      m.timer = setTimeout(() => {
        m.state = 'active';
        this.pump();
      }, scheduled - now);
    }
    this.pump();
    return m.sequence;
  }

  cancel(sequence) {
    const m = this.messages.get(sequence);
    if (!m || m.state !== 'scheduled') return false;
    clearTimeout(m.timer);
    return this.messages.delete(sequence);
  }

  // pump sends messages to receivers with credit, one each per turn: rhea takes the credit of a message off
  // only after the turn in which it was sent.
  pump() {
    if (this.pumping) return;
    this.pumping = true;
    setImmediate(() => {
      this.pumping = false;
      let sent = false;
      for (const receiver of this.receivers) {
        if (!receiver.is_open() || !receiver.sendable()) continue;
        const m = this.next();
        if (!m) return;
        this.deliver(m, receiver);
        sent = true;
      }
      if (sent) this.pump();
    });
  }

  next() {
    for (const m of this.messages.values()) if (m.state === 'active') return m;
    return undefined;
  }

  deliver(m, receiver) {
    if (receiver.snd_settle_mode === 1) { // receive and delete
      this.messages.delete(m.sequence);
      receiver.send(this.encode(m), crypto.randomBytes(16), 0);
      return;
    }
    const tag = crypto.randomBytes(16);
    m.token = lockToken(tag);
    m.state = 'locked';
    this.locked.set(m.token, m);
    this.lock(m);
    receiver.send(this.encode(m), tag, 0);
  }

  // lock starts or renews the lock of a message and returns when it ends.
  lock(m) {
    clearTimeout(m.timer);
    m.lockedUntil = new Date(Date.now() + this.options.lockMs);
    m.timer = setTimeout(() => this.abandon(this.unlock(m.token)), this.options.lockMs);
    return m.lockedUntil;
  }

  // unlock ends a lock and returns its message, undefined when the lock was lost.
  unlock(token) {
    const m = this.locked.get(token);
    if (!m) return undefined;
    this.locked.delete(token);
    clearTimeout(m.timer);
    m.state = 'active';
    return m;
  }

  complete(m) {
    this.messages.delete(m.sequence);
  }

  release(m) {
    this.pump();
  }

  abandon(m) {
    m.deliveryCount++;
    if (!this.parent && m.deliveryCount >= this.options.maxDeliveryCount) {
      this.deadLetter(m, 'MaxDeliveryCountExceeded',
        `Message could not be consumed after ${this.options.maxDeliveryCount} delivery attempts.`);
      return;
    }
    this.pump();
  }

  deadLetter(m, reason = '', description = '') {
    this.messages.delete(m.sequence);
    const to = this.deadLetters || this;
    to.messages.set(++to.sequence, {
      ...m,
      sequence: to.sequence,
      sections: sections.withProperties(m.sections, { DeadLetterReason: reason, DeadLetterErrorDescription: description }),
      state: 'active',
      source: this.name,
    });
    to.pump();
  }

  // encode returns the message as a receiver gets it.
  encode(m) {
    const annotations = {
      'x-opt-sequence-number': types.wrap_long(m.sequence),
      'x-opt-enqueue-sequence-number': types.wrap_long(m.sequence),
      'x-opt-enqueued-time': types.wrap_timestamp(m.enqueuedAt.getTime()),
    };
    if (m.state === 'locked') annotations['x-opt-locked-until'] = types.wrap_timestamp(m.lockedUntil.getTime());
    if (m.state === 'scheduled') annotations['x-opt-message-state'] = types.wrap_int(2);
    if (m.source) annotations['x-opt-deadletter-source'] = types.wrap_string(m.source);
    return sections.join(m.sections, m.deliveryCount, annotations);
  }

  count(state) {
    let n = 0;
    for (const m of this.messages.values()) if (m.state === state) n++;
    return n;
  }

  // dump is what the control channel shows.
  dump(limit) {
    const messages = [];
    for (const m of this.messages.values()) {
      if (messages.length >= limit) break;
      const d = message.decode(this.encode(m));
      messages.push({
        sequence: m.sequence,
        state: m.state,
        deliveryCount: m.deliveryCount,
        enqueuedAt: m.enqueuedAt,
        id: d.message_id,
        subject: d.subject,
        sessionId: d.group_id,
        contentType: d.content_type,
        properties: d.application_properties || {},
        body: Buffer.from(d.body.content).toString('base64'),
      });
    }
    return {
      name: this.name,
      active: this.count('active'),
      locked: this.count('locked'),
      scheduled: this.count('scheduled'),
      deadLetter: this.deadLetters ? this.deadLetters.messages.size : 0,
      duplicates: this.duplicates,
      messages,
    };
  }
}

// lockToken is the lock token of a delivery tag: the tag is a GUID with its first fields little-endian.
function lockToken(tag) {
  const t = Buffer.from(tag);
  t.subarray(0, 4).reverse();
  t.subarray(4, 6).reverse();
  t.subarray(6, 8).reverse();
  return t.toString('hex');
}

module.exports = { Queue, DEAD_LETTER, lockToken };
