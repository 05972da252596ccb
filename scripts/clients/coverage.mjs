// Runs the examples of the OpenRPC document with the rules of @open-rpc/test-coverage and prints one line for each
// that fails. All calls are dry runs, so that examples do not change what later ones find.
// Arguments: the document, the URL of /rpc, a key of an instance, an operator's key.
import { createRequire } from "node:module";
import { parseOpenRPCDocument } from "@open-rpc/schema-utils-js";

const require = createRequire(import.meta.url);
const coverage = require("@open-rpc/test-coverage/build/index.js").default;

const [file, url, key, operatorKey] = process.argv.slice(2);
const openrpcDocument = await parseOpenRPCDocument(file);
const forOperators = new Set(
  openrpcDocument.methods.filter((method) => method["x-operator"]).map((method) => method.name),
);

let id = 0;
async function transport(_, method, params) {
  const response = await fetch(url, {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      "Dry-Run": "true",
      "x-api-key": forOperators.has(method) ? operatorKey : key,
    },
    body: JSON.stringify({ jsonrpc: "2.0", id: ++id, method, params }),
  });
  return response.json();
}

const quiet = { onBegin() {}, onTestBegin() {}, onTestEnd() {}, onEnd() {} };
const calls = await coverage({ openrpcDocument, transport, reporters: [quiet], skip: [], only: [] });
const failed = calls.filter((call) => !call.valid);
for (const call of failed) {
  console.error(`${call.title} (${call.methodName}): ${call.reason ?? call.requestError}`);
}
console.log(JSON.stringify({ calls: calls.length, failed: failed.length }));
process.exit(failed.length === 0 && calls.length > 0 ? 0 : 1);
