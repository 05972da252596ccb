// Calls a server through the client that @open-rpc/generator generated from the OpenRPC document.
// It is compiled with that client, which also checks the types of params and results.
import { Client, HTTPTransport, RequestManager } from "@open-rpc/client-js";
import { Officerpc } from "./index";

async function main(url: URL, key: string): Promise<void> {
  const office = new Officerpc({
    transport: { type: "http", host: url.hostname, port: Number(url.port), path: "rpc" },
  });
  const headers = { "x-api-key": key };
  office.rpc = new Client(new RequestManager([new HTTPTransport(new URL("rpc", url).href, { headers })]));

  const created = await office.createUser("ann@example.com");
  // undefined omits a param: it is sent as null in the list of params.
  const updated: boolean = await office.updateUserByEmail("ann@example.com", undefined, undefined, false);
  const found = await office.getUserByEmail("ann@example.com");
  const again = await office.createUser("ann@example.com").catch((error) => error);
  console.log(
    JSON.stringify({
      created: { id: created.id, email: created.email },
      found: { id: found.id, isActive: found.isActive },
      updated,
      again: { code: again.code, data: again.data.code },
    }),
  );
}

main(new URL(process.argv[2]), process.argv[3]);
