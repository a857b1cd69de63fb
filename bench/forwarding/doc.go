// Package forwarding measures what a sidecar costs an inference server's answers, beside net/http/httputil's ReverseProxy before the same
// server, in one process.
package forwarding
