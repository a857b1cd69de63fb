// Package forwarding measures what stands between a client and an inference server: a sidecar, beside net/http/httputil's ReverseProxy before the
// same server in one process; and a local proxy before 20 sidecars that are processes of their own, beside those sidecars.
package forwarding
