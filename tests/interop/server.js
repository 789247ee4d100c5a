// TLS, h1 and h2 by ALPN, by Node's own http2. Arguments: port, directory of the certificate, idle time in
// milliseconds, streams per connection.
//
//   GET  /           hello
//   POST /echo       the body, while it comes
//   POST /sum        how many bytes came, and the trailers behind them
//   GET  /trailers   a body with a trailer behind it
//   GET  /goodbye    hello, and the end of the connection once everything is answered
//   any  /held       never answered; a line in the log
//   GET  /half       a head, half a body, and nothing more
//   CONNECT with a protocol (RFC 8441): an echo of whatever comes
//
// SIGUSR2: every connection is dropped without a word.
'use strict';
const fs = require('node:fs');
const http2 = require('node:http2');

const [port, dir, idle, streams] = process.argv.slice(2);
const server = http2.createSecureServer({
  allowHTTP1: true,
  key: fs.readFileSync(`${dir}/key.pem`),
  cert: fs.readFileSync(`${dir}/cert.pem`),
  settings: { maxConcurrentStreams: Number(streams), enableConnectProtocol: true },
});

const sockets = new Set();
server.on('secureConnection', (socket) => {
  sockets.add(socket);
  socket.on('close', () => sockets.delete(socket));
  socket.on('error', () => {});
});
process.on('SIGUSR2', () => {
  for (const socket of sockets) socket.destroy();
});

server.keepAliveTimeout = Number(idle);
server.on('session', (session) => {
  session.setTimeout(Number(idle), () => session.close());
  session.on('error', () => {});
});

server.on('request', (request, response) => {
  const isHttp2 = request.httpVersionMajor === 2;
  const socket = isHttp2 ? request.stream.session.socket : request.socket;
  request.on('error', () => {});
  response.on('error', () => {});
  response.setHeader('x-peer-port', String(socket.remotePort));
  response.setHeader('x-tls-resumed', String(socket.isSessionReused()));
  switch (new URL(request.url, 'https://api.test').pathname) {
    case '/':
      response.end('hello');
      break;
    case '/echo':
      request.pipe(response);
      break;
    case '/sum': {
      let bytes = 0;
      request.on('data', (chunk) => { bytes += chunk.length; });
      request.on('end', () => response.end(`${bytes} ${request.trailers['x-check']}`));
      break;
    }
    case '/trailers':
      response.setHeader('trailer', 'x-check');
      response.write('behind this: ');
      response.addTrailers({ 'x-check': 'done' });
      response.end();
      break;
    case '/goodbye':
      if (isHttp2) {
        response.end('hello');
        request.stream.session.close();
      } else {
        response.setHeader('connection', 'close');
        response.end('hello');
      }
      break;
    case '/held':
      request.resume();
      console.log('held');
      break;
    case '/half':
      response.setHeader('content-length', '10');
      response.write('half ');
      break;
    default:
      response.statusCode = 404;
      response.end();
  }
});

server.on('connect', (request, response) => {
  const { stream } = response;
  stream.on('error', () => {});
  stream.respond({ ':status': 200, 'x-said': request.headers[':protocol'] });
  stream.pipe(stream);
});

server.listen(Number(port), '127.0.0.1');
