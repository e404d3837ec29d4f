// Google's gRPC-Web client (npm `grpc-web`), run by Node with an XMLHttpRequest, against `test.Echo` behind a proxy.
// Messages are bytes: no generated code is needed. Prints a line per call and `all` at the end.
'use strict';
const { createRequire } = require('module');
// Where tests/real/install.sh puts packages.
const installed = createRequire(require('path').join(__dirname, '../../../target/real-node/package.json'));
global.XMLHttpRequest = installed('xhr2');
const web = installed('grpc-web');

const [host, format] = process.argv.slice(2);
const client = new web.GrpcWebClientBase({ format });

class Bytes {}

const call = (name, type) =>
  new web.MethodDescriptor(`/test.Echo/${name}`, type, Bytes, Bytes, (text) => Buffer.from(text), (bytes) => Buffer.from(bytes).toString());

const unary = (name, text, metadata = {}) =>
  client.thenableCall(`http://${host}/test.Echo/${name}`, text, metadata, call(name, web.MethodType.UNARY));

const stream = (name, text) =>
  new Promise((resolve) => {
    const seen = [];
    const messages = client.serverStreaming(`http://${host}/test.Echo/${name}`, text, {}, call(name, web.MethodType.SERVER_STREAMING));
    messages.on('data', (message) => seen.push(message));
    messages.on('error', (error) => resolve([...seen, `error ${error.code} ${error.message}`]));
    messages.on('end', () => resolve([...seen, 'end']));
  });

const failure = (promise) => promise.then(() => 'no failure', (error) => `error ${error.code} ${error.message}`);

(async () => {
  console.log('unary:', await unary('Unary', 'grüße'));
  console.log('fail:', await failure(unary('Fail', 'x')));
  console.log('unknown:', await failure(unary('Nothing', 'x')));
  console.log('deadline:', await failure(unary('Slow', '5', { deadline: String(Date.now() + 300) })));
  if (format === 'text') {
    console.log('stream:', (await stream('ServerStream', '3')).join(' '));
    console.log('half:', (await stream('Half', 'x')).join(' '));
  }
  console.log('all');
  process.exit(0);
})();
