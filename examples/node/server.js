// A small HTTP server on Node.js: takes its listener from Heirloom as descriptor 3, and on SIGTERM
// answers all it has accepted before it ends. Nothing but the standard library.
'use strict';

const http = require('node:http');
const net = require('node:net');

let stopping = false;

const server = http.createServer((request, response) => {
  const answer = () => {
    if (stopping) response.setHeader('Connection', 'close');
    response.end(`pid ${process.pid}\n`);
  };
  if (request.url === '/slow') setTimeout(answer, 300);
  else answer();
});

server.keepAliveTimeout = 75_000;
// Node calls listen(2) again. Unless told otherwise here, it would shorten the queue to 511; a
// `backlog` among the options it passes over.
server.listen({ fd: 3 }, 4096);

process.on('SIGTERM', () => {
  stopping = true;
  // Accepts no more; the process ends when all connections have. http.Server's own close() would
  // also close idle ones at once, under a request that may be on its way.
  net.Server.prototype.close.call(server);
  // So it is left to them to be told with their next answer, and those that stay idle go later.
  setTimeout(() => server.closeIdleConnections(), 2_000);
});
