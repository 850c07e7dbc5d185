'use strict';

// The control channel: HTTP with JSON bodies on a loopback port.
//
//   PUT    /queues/{name}  {options of queue.js}         creates the queue, or changes its options
//   DELETE /queues/{name}
//   GET    /queues/{name}?limit=n                        counts and messages, oldest first; {name}/$deadletterqueue too
//   POST   /faults         {fault} or [{fault}...]       plans faults
//   DELETE /faults
//   PUT    /settings       {paused, idleDetachMs, keyName, key}
//   GET    /stats, GET /tokens
//   POST   /disconnect                                   drops every connection
//
// A fault: {on: "token"|"attach"|"send", queue, kind, times (1; 0: until cleared), condition, description,
// status, ms}. Kinds of send: none, slow, silent, reject, detach, disconnect, lose-ack; of attach: none, silent,
// reject; of token: none, silent, reject.

const http = require('http');
const { Queue } = require('./queue.js');

function listen(state, ready) {
  const server = http.createServer((request, response) => {
    const chunks = [];
    request.on('data', (c) => chunks.push(c));
    request.on('end', () => {
      let status = 200;
      let answer;
      try {
        const text = Buffer.concat(chunks).toString();
        answer = route(state, request.method, new URL(request.url, 'http://stub'), text && JSON.parse(text));
        if (answer === undefined) [status, answer] = [404, { error: 'not found' }];
      } catch (e) {
        [status, answer] = [400, { error: e.message }];
      }
      response.writeHead(status, { 'Content-Type': 'application/json' });
      response.end(JSON.stringify(answer));
    });
  });
  server.listen(0, '127.0.0.1', () => ready(server.address().port));
}

function route(state, method, url, body) {
  const [, kind, ...rest] = url.pathname.split('/');
  const name = decodeURIComponent(rest.join('/')).toLowerCase();
  const queue = state.findQueue(name);
  switch (`${method} ${kind}`) {
    case 'PUT queues':
      if (queue) Object.assign(queue.options, body);
      else state.queues.set(name, new Queue(name, body));
      return {};
    case 'DELETE queues':
      return state.queues.delete(name) ? {} : undefined;
    case 'GET queues':
      return queue && queue.dump(Number(url.searchParams.get('limit') || 100000));
    case 'POST faults':
      state.faults.push(...(Array.isArray(body) ? body : [body]));
      return {};
    case 'DELETE faults':
      state.faults = [];
      return {};
    case 'PUT settings':
      Object.assign(state.settings, body);
      if (!state.settings.paused) state.resume();
      return {};
    case 'GET stats':
      return { ...state.stats, open: state.open(), planned: state.faults.length, waiting: state.waiting.length };
    case 'GET tokens':
      return state.tokens;
    case 'POST disconnect':
      state.disconnectAll();
      return {};
  }
  return undefined;
}

module.exports = { listen };
