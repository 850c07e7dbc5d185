// Uses the types that openapi-typescript makes from the contract as a client would; it is compiled, not run.
import createClient from "openapi-fetch";
import type { components, paths } from "./api";

type Schemas = components["schemas"];

const client = createClient<paths>({ baseUrl: "https://app.example", headers: { "x-functions-key": "key" } });

// Everything but the user may be omitted, or be null.
const least: Schemas["Heartbeat"] = { user: "alice" };
const full: Schemas["Heartbeat"] = {
  user: "alice",
  session: null,
  ttlSeconds: 60,
  graceSeconds: null,
  groups: ["facility:7"],
  meta: { app: "2.4.1", nested: { n: 1 } },
  seq: 7,
};

export async function use(): Promise<string> {
  const beat = await client.POST("/api/heartbeat", { body: least });
  if (!beat.data) {
    const wrong: Schemas["FieldError"] | undefined = beat.error?.errors?.[0];
    return wrong?.pointer ?? beat.error?.instance ?? beat.error?.detail ?? beat.response.statusText;
  }
  const change: Schemas["HeartbeatReceipt"]["change"] = beat.data.change;
  await client.POST("/api/heartbeats", { body: { heartbeats: [least, full] } });
  await client.POST("/api/leaves", { body: { leaves: [{ user: "alice" }] } });
  const users = await client.POST("/api/users/query", { body: { users: ["alice"] } });
  const status: "online" | "offline" | "unknown" | undefined = users.data?.users[0]?.status;
  const user = await client.GET("/api/users/{user}", { params: { path: { user: "alice" } } });
  const session: Schemas["LiveSession"] | undefined = user.data?.sessions[0];
  const page = await client.GET("/api/users/{user}/events", { params: { path: { user: "alice" }, query: { limit: 5 } } });
  const step: Schemas["EventStep"] | undefined = page.data?.events[0]?.history[0];
  await client.DELETE("/api/users/{user}/sessions/{session}", { params: { path: { user: "alice", session: "default" } } });
  return `${change} ${status} ${session?.expiresAt} ${step?.status} ${page.data?.continuation}`;
}
