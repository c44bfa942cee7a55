// Calls of browsers, by the two clients that they use: grpc-web (as text, which streams, and as bytes) and connect-web (as
// bytes, which stream). Messages are bytes, as in peer.py.

const assert = require("node:assert");
const grpcWeb = require("grpc-web");
const { createClient, ConnectError, Code } = require("@connectrpc/connect");
const { createGrpcWebTransport } = require("@connectrpc/connect-web");
const { create, createFileRegistry } = require("@bufbuild/protobuf");
const wkt = require("@bufbuild/protobuf/wkt");

const [base, command] = process.argv.slice(2);

// What grpc-web needs of a browser's: text arrives in `responseText` piece by piece.
globalThis.XMLHttpRequest = class {
  readyState = 0;
  status = 0;
  statusText = "";
  responseType = "";
  responseText = "";
  response = null;
  fields = new Headers();
  leaving = new AbortController();

  open(method, url) {
    this.asked = { method, url, headers: {} };
  }

  setRequestHeader(name, value) {
    this.asked.headers[name] = value;
  }

  getResponseHeader(name) {
    return this.fields.get(name);
  }

  getAllResponseHeaders() {
    return [...this.fields].map(([name, value]) => `${name}: ${value}\r\n`).join("");
  }

  abort() {
    this.leaving.abort();
  }

  become(state) {
    this.readyState = state;
    this.onreadystatechange?.();
  }

  async send(body) {
    const { url, ...asked } = this.asked;
    try {
      const answer = await fetch(url, { ...asked, body, signal: this.leaving.signal });
      [this.status, this.statusText, this.fields] = [answer.status, answer.statusText, answer.headers];
      this.become(2);
      const parts = [];
      for await (const part of answer.body ?? []) {
        parts.push(part);
        this.responseText = Buffer.concat(parts).toString("latin1");
        this.become(3);
      }
      this.response = this.responseType === "arraybuffer" ? new Uint8Array(Buffer.concat(parts)).buffer : this.responseText;
    } catch (error) {
      [this.status, this.statusText] = [0, String(error)];
    }
    this.become(4);
  }
};

// grpc-web's clients know methods by their path.
function method(name, type) {
  const bytes = (message) => message;
  return new grpcWeb.MethodDescriptor(`/svc/${name}`, type, Uint8Array, Uint8Array, bytes, bytes);
}

function call(client, name, message, metadata = {}) {
  return new Promise((resolve) => {
    const seen = { head: {}, status: null };
    const descriptor = method(name, "unary");
    const done = (error, answer) => setImmediate(() => resolve({ ...seen, error, answer }));
    const stream = client.rpcCall(base + descriptor.getName(), message, metadata, descriptor, done);
    stream.on("metadata", (fields) => (seen.head = { ...seen.head, ...fields }));
    stream.on("status", (status) => (seen.status = status));
    seen.stream = stream;
  });
}

function pattern(bytes) {
  return Uint8Array.from({ length: bytes }, (_, index) => index % 251);
}

async function grpcWebCalls(format) {
  const client = new grpcWeb.GrpcWebClientBase({ format, maxReceiveMessageSize: 0 });
  for (const bytes of [0, 1, 2, 3, 4, 1000, 100_000, 1_000_000]) {
    const { error, answer } = await call(client, "Unary", pattern(bytes));
    assert.equal(error, null, `${format}, ${bytes}`);
    assert.equal(Buffer.compare(Buffer.from(answer), Buffer.from(pattern(bytes))), 0, `${format}, ${bytes}`);
  }
  const failed = (await call(client, "Fails", new Uint8Array(0))).error;
  assert.equal(failed.code, grpcWeb.StatusCode.FAILED_PRECONDITION);
  assert.equal(failed.message, "not so: \u00fc, 100 %");
  assert.equal(failed.metadata["x-why"], "because");
  const unknown = (await call(client, "Unknown", new Uint8Array(0))).error;
  assert.equal(unknown.code, grpcWeb.StatusCode.UNIMPLEMENTED);
  const asked = { "x-asked": "a b", "x-asked-bin": "AAH/", deadline: String(Date.now() + 5000) };
  const { head, status, error, answer } = await call(client, "Metadata", new Uint8Array(0), asked);
  assert.equal(error, null);
  assert.equal(head["x-initial-bin"], "AAH/");
  assert.equal(status.metadata["x-trailing"], "a b");
  const left = Number(Buffer.from(answer).toString());
  assert(left > 0 && left <= 5500, `a deadline is passed on: ${left}`);
}

// Each message must be here before the service is told to send the next.
async function grpcWebStreams() {
  const client = new grpcWeb.GrpcWebClientBase({ format: "text" });
  for (const bytes of [1, 2, 3, 40_000]) {
    const descriptor = method("Steps", "server_streaming");
    const stream = client.serverStreaming(base + descriptor.getName(), pattern(bytes), {}, descriptor);
    let count = 0;
    await new Promise((resolve, reject) => {
      stream.on("data", (message) => {
        assert.equal(message.length, bytes);
        count += 1;
        call(client, "Step", new Uint8Array(0));
      });
      stream.on("error", reject);
      stream.on("end", resolve);
    });
    assert.equal(count, 5);
  }
}

function connectClient() {
  const one = { inputType: ".google.protobuf.BytesValue", outputType: ".google.protobuf.BytesValue" };
  const names = ["Unary", "Fails", "Held", "Unknown", "Step"];
  const file = create(wkt.FileDescriptorProtoSchema, {
    name: "svc.proto",
    syntax: "proto3",
    dependency: ["google/protobuf/wrappers.proto"],
    service: [
      { name: "svc", method: [...names.map((name) => ({ name, ...one })), { name: "Steps", serverStreaming: true, ...one }] },
    ],
  });
  const registry = createFileRegistry(file, (name) => {
    assert.equal(name, "google/protobuf/wrappers.proto");
    return wkt.file_google_protobuf_wrappers;
  });
  return createClient(registry.getService("svc"), createGrpcWebTransport({ baseUrl: base, useBinaryFormat: true }));
}

async function failure(promise) {
  const error = await promise.then(
    () => assert.fail("it must fail"),
    (error) => error,
  );
  assert(error instanceof ConnectError, String(error));
  return error;
}

async function connectCalls() {
  const client = connectClient();
  for (const bytes of [0, 1, 1000, 1_000_000]) {
    const answer = await client.unary({ value: pattern(bytes) });
    assert.equal(Buffer.compare(Buffer.from(answer.value), Buffer.from(pattern(bytes))), 0);
  }
  let count = 0;
  for await (const message of client.steps({ value: pattern(10) })) {
    assert.equal(message.value.length, 10);
    count += 1;
    client.step({});
  }
  assert.equal(count, 5);
  const failed = await failure(client.fails({}));
  assert.equal(failed.code, Code.FailedPrecondition);
  assert.equal(failed.rawMessage, "not so: \u00fc, 100 %");
  assert.equal(failed.metadata.get("x-why"), "because");
  assert.equal((await failure(client.unknown({}))).code, Code.Unimplemented);
  assert.equal((await failure(client.held({}, { timeoutMs: 500 }))).code, Code.DeadlineExceeded);
  const leaving = new AbortController();
  const waiting = failure(client.held({}, { signal: leaving.signal }));
  setTimeout(() => leaving.abort(), 300);
  assert.equal((await waiting).code, Code.Canceled);
}

// The proxy's own answer: `unavailable`, and why.
async function refused() {
  for (const format of ["text", "binary"]) {
    const { error } = await call(new grpcWeb.GrpcWebClientBase({ format }), "Unary", pattern(10));
    assert.equal(error.code, grpcWeb.StatusCode.UNAVAILABLE, format);
    assert.match(error.message, /connect_failed/);
  }
  const error = await failure(connectClient().unary({}));
  assert.equal(error.code, Code.Unavailable);
  assert.match(error.rawMessage, /connect_failed/);
}

async function main() {
  if (command === "refused") {
    await refused();
  } else {
    await grpcWebCalls("text");
    await grpcWebCalls("binary");
    await grpcWebStreams();
    await connectCalls();
  }
  console.log("all well");
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
