package rig

import (
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
)

// listener keeps all connections that a server ever accepted: a server forgets those that became duplex streams.
type listener struct {
	net.Listener
	mu  sync.Mutex
	all []net.Conn
}

func (c *listener) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all = append(c.all, conn)
	}
	return conn, err
}

// Serve starts a server whose every connection HangUp can end.
func Serve(h http.Handler) *httptest.Server {
	server := httptest.NewUnstartedServer(h)
	server.Listener = &listener{Listener: server.Listener}
	server.Start()
	return server
}

// HangUp ends every connection to a server that Serve started.
func HangUp(server *httptest.Server) {
	server.CloseClientConnections()
	c := server.Listener.(*listener)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.all {
		_ = conn.Close()
	}
}
