package proxy

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/gpupay/gpupay/sdk/route"
)

// Config is what a Server is made of. Pool is needed; the zero value of every other field is its default.
type Config struct {
	// Pool pays, and knows the providers.
	Pool Pool
	// Keys are the local keys. While there is none, callers need none: who reaches the loopback of this machine spends the budget.
	Keys *Keys
	// Decimals are those of the token, from 0 to 18; 6 if zero. Its unit is shown as a dollar.
	Decimals uint8
	// Attempts is at how many providers a request is tried, from 1; 3 if zero.
	Attempts int
	// MaxTokens is how many tokens an answer is taken to have at most whose request does not say; 4,096 if zero. The request is ended
	// when it has taken half as long again, and a second, as so many tokens take.
	MaxTokens int64
	// MaxBody bounds a request's body, in bytes; 32 MiB if zero, and no more than that, which is what can be sent again after a payment.
	MaxBody int64
	// Hosts are names beside localhost and addresses of the loopback by which callers may call this server.
	Hosts []string
	// Origins are web pages that may ask, such as https://chat.example.org: no other page's scripts may.
	Origins []string
	// Rand draws providers; seeded by chance if nil.
	Rand *rand.Rand
	// Requests gets a line for each request: who, where, how long, for how much, and nothing of its content. None if nil.
	Requests *slog.Logger
	// Log gets what an operator may want to know of failures; slog.Default() if nil.
	Log *slog.Logger
	// Now is time.Now if nil.
	Now func() time.Time
}

const maxBody = 32 << 20

func (c *Config) defaults() error {
	switch {
	case c.Pool == nil:
		return errors.New("proxy: Config.Pool is nil: nobody pays the providers")
	case c.Decimals > 18:
		return errors.New("proxy: Config.Decimals is over 18")
	case c.Attempts < 0 || c.MaxTokens < 0 || c.MaxBody < 0 || c.MaxBody > maxBody:
		return errors.New("proxy: Config.Attempts, MaxTokens and MaxBody are not negative, and MaxBody is 32 MiB at most")
	}
	if c.Decimals == 0 {
		c.Decimals = 6
	}
	if c.Attempts == 0 {
		c.Attempts = 3
	}
	if c.MaxTokens == 0 {
		c.MaxTokens = 4096
	}
	if c.MaxBody == 0 {
		c.MaxBody = maxBody
	}
	if c.Rand == nil {
		c.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

func (c *Config) router() (*route.Router, error) {
	return route.New(route.Config{Rand: c.Rand, Decimals: c.Decimals})
}
