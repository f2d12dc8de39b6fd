// Leases, writes, reads, shares, opens and releases with nothing but the .proto files.
// usage: node client.mjs PROTO_DIRECTORY ADDRESS
import assert from "node:assert/strict";
import { promisify } from "node:util";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [protoDirectory, address] = process.argv.slice(2);
const definition = loader.loadSync("slabd/v1/pool.proto", {
  includeDirs: [protoDirectory],
  longs: Number,
  enums: String,
  defaults: true,
});
const { PoolService } = grpc.loadPackageDefinition(definition).slabd.v1;
const client = new PoolService(address, grpc.credentials.createInsecure());
const call = (method, request) => promisify(client[method].bind(client))(request);

const write = (first, pieces) =>
  new Promise((resolve, reject) => {
    const stream = client.WriteBlock((error, answer) => (error ? reject(error) : resolve(answer)));
    pieces.forEach((data, index) => stream.write(index === 0 ? { ...first, data } : { data }));
    stream.end();
  });

const read = (request) =>
  new Promise((resolve, reject) => {
    const pieces = [];
    client
      .ReadBlock(request)
      .on("data", (answer) => pieces.push(answer.data))
      .on("error", reject)
      .on("end", () => resolve(Buffer.concat(pieces)));
  });

const { session } = await call("OpenSession", { name: "outside", access: "ACCESS_MODE_READ_WRITE" });
const { blocks } = await call("Lease", {
  session: session.key,
  sequence: 1,
  items: [{ size: 100 }, { size: 300000, alignment: 8192 }],
  label: "from JavaScript",
});
assert.equal(blocks.length, 2);
assert.equal(blocks[0].size, 128);
assert.equal(blocks[1].offset % 8192, 0);

const block = blocks[1].ref;
const halves = [Buffer.alloc(100000, "a"), Buffer.alloc(200000, "b")];
const { writtenBytes } = await write({ session: session.key, block }, halves);
assert.equal(writtenBytes, 300000);
assert.deepEqual(await read({ session: session.key, block }), Buffer.concat(halves));

const shared = await call("Share", { session: session.key, items: [{ block }] });
const other = (await call("OpenSession", { name: "second", access: "ACCESS_MODE_READ_ONLY" })).session;
const opened = await call("Open", { session: other.key, handles: [shared.results[0].handle] });
assert.equal(opened.results[0].block.requestedSize, 300000);
const middle = await read({ session: other.key, block, offset: 99999, length: 2 });
assert.equal(middle.toString(), "ab");

const released = await call("Release", { session: session.key, blocks: blocks.map((each) => each.ref) });
assert.deepEqual(released.results.map((each) => each.reason), Array(2).fill("ERROR_REASON_UNSPECIFIED"));
await call("Close", { session: other.key, blocks: [block] });
const { heaps } = await call("GetStats", { session: session.key });
assert.equal(heaps[0].usedBytes, 0);

await assert.rejects(call("Lease", { session: session.key, items: [{ size: 0 }] }), (error) => {
  assert.equal(error.code, grpc.status.INVALID_ARGUMENT);
  return true;
});
await call("CloseSession", { session: session.key });
await call("CloseSession", { session: other.key });
console.log("leased, wrote, read, shared, opened, closed and released");
client.close();
