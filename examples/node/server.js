// A small HTTP server on Node.js: takes its listener from Heirloom as descriptor 3, and ends on
// SIGTERM as Node's own documentation shows. Nothing but the standard library.
'use strict';

const http = require('node:http');

let stopping = false;

const server = http.createServer((request, response) => {
  const answer = () => {
    // close() lets a connection with a request go on for another one. This one was the last.
    if (stopping) response.setHeader('Connection', 'close');
    response.end(`pid ${process.pid}\n`);
  };
  if (request.url === '/slow') setTimeout(answer, 300);
  else answer();
});

server.keepAliveTimeout = 75_000;
// Node calls listen(2) again; without a backlog it would shorten the queue to 511.
server.listen({ fd: 3, backlog: 4096 });

process.on('SIGTERM', () => {
  stopping = true;
  // Accepts no more, closes idle connections, and lets the process end when the others are done.
  server.close();
});
