// Package redisconn is the one way to Redis that all parts of a process share: a single server or a cluster, one
// connection for commands and one for subscriptions to each server (design D8). It knows nothing of what is kept there;
// packages such as redisstore do, and reach Redis in turns over it.
//
// The way of one request, from the caller down:
//
//	lane.go          Lane: requests about one thing each share a round trip
//	door.go          Class, Client.Enter, Client.Through: whose turn it is on the connection
//	script.go        Call, Client.Run: scripts in one round trip, loaded where they are unknown
//	client.go        Client, Client.Connect: the shared client, made on first use, replaced when it stays broken
//	watch.go         a hook of each round trip: circuit, connection, how it went
//	connector.go     opens the connection to one server
//	socket.go        the connections themselves, one for commands to each server
//
// Beside it:
//
//	cluster.go       the primaries of a cluster, as they come and go
//	announcement.go  what a server says of its maintenance, and the greeting of a new connection
//	abandon.go       Client.Abandon: what waits for a server that was given up ends now
//	subscription.go  Client.Subscribe, Client.EnsureNotifications: expired events and Azure's maintenance channel
//	clock.go         Clock, Dating: the time of a server, by which requests are dated
//	condition.go     Client.Memory, Client.CheckWrites: whether a server is full, evicts or refuses writes
//	budget.go        Budget: connections of all processes against the server's limit
//	endpoint.go      Endpoint: which Redis, and who we are there
//	metrics.go       Client.Collector: the numbers of the connection for Prometheus
//	errors.go        Unavailable, Cause, Code: what each fault and each refusal means, with its cure
package redisconn
