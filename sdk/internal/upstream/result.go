package upstream

import (
	"fmt"
	"time"
)

// Outcome is how a request ended.
type Outcome int

const (
	// Rejected is a request that was not passed on.
	Rejected Outcome = iota
	// Completed is a request that was answered to the end.
	Completed
	// Refused is a request that the upstream answered with a status of 4xx, but 408, 425 and 429: it works, and the request is at fault.
	Refused
	// Failed is a request that the upstream did not answer, or not to the end.
	Failed
	// Aborted is a request whose client left before the end, or did not read.
	Aborted
)

func (o Outcome) String() string {
	switch o {
	case Rejected:
		return "rejected"
	case Completed:
		return "completed"
	case Refused:
		return "refused"
	case Failed:
		return "failed"
	case Aborted:
		return "aborted"
	default:
		return fmt.Sprintf("Outcome(%d)", int(o))
	}
}

// Reason says why a request ended as it did. It is one of the constants, and never has words of a client's or of an upstream's.
type Reason string

const (
	// NotServed is of a route that there is not: 404.
	NotServed Reason = "no such route is served"
	// TooLarge is of a body over Config.MaxBody: 413.
	TooLarge Reason = "the request's body is too large"
	// SlowBody is of a body that was not there within Config.BodyTimeout: 408.
	SlowBody Reason = "the request's body did not arrive in time"
	// BadBody is of a body that broke off, or is encoded: 400 or 415.
	BadBody Reason = "the request's body cannot be read"
	// Background is of work that would go on after its request has ended, where nobody bills it: 400.
	Background Reason = "work in the background is not passed on: leave out \"background\""
	// Busy is of a body for which there is no memory now: 503.
	Busy Reason = "too many requests are being read"
	// TooMany is of a body of a client whose others take all of the memory that it may have: 429.
	TooMany Reason = "too many requests of this client are being read"

	// Unreachable is of a connection to the upstream that could not be made.
	Unreachable Reason = "the upstream cannot be reached"
	// NoAnswer is of a connection that ended, or was not understood, before there was an answer.
	NoAnswer Reason = "the upstream broke off before it answered"
	// HeaderTimeout is of an answer that did not begin within Config.HeaderTimeout.
	HeaderTimeout Reason = "the upstream did not begin to answer in time"
	// IdleTimeout is of an answer that stood still for Config.IdleTimeout, while its client would have read.
	IdleTimeout Reason = "the upstream stopped in the middle of its answer"
	// TotalTimeout is of an answer that was not over within Config.TotalTimeout.
	TotalTimeout Reason = "the answer was not over in time"
	// Broken is of an answer that broke off: its connection was reset, or it is shorter than it said.
	Broken Reason = "the upstream broke off in the middle of its answer"
	// Unfinished is of a stream that was closed in good order without what ends every stream of its kind, or in the middle of a line:
	// ollama ends one so under OpenAI's API whose model has failed. So is a document of JSON that is no object and no array, or not to its end.
	Unfinished Reason = "the upstream's answer has no end"
	// ErrorEvent is of a stream in which the upstream reported an error.
	ErrorEvent Reason = "the upstream reported an error in its answer"
	// ServerError is of a status of 5xx, and of 408, 425 and 429, by which the upstream says that it did not serve the request now.
	ServerError Reason = "the upstream reported an error"
	// BadAnswer is of an answer that none of the engines gives and that is not passed on: it sends elsewhere, asks for another credential or
	// for a payment, switches protocols, or is compressed although that was not asked for.
	BadAnswer Reason = "the upstream's answer is not passed on"
	// Stopped is of a request whose context the caller ended with a cause of its own, or whose Proxy was closed.
	Stopped Reason = "the request was stopped here"

	// ClientGone is of a client that closed its connection.
	ClientGone Reason = "the client has left"
	// ClientSlow is of a client that did not take a piece of the answer within Config.WriteTimeout, or for whom the answer
	// waited for most of Config.TotalTimeout.
	ClientSlow Reason = "the client does not read"
)

// Result is how a request ended. Its zero value is of a request that was not passed on.
type Result struct {
	// Outcome is what it is billed by.
	Outcome Outcome
	// Reason says why; it is empty where Outcome is Completed or Refused.
	Reason Reason
	// Status is what the upstream answered; 0 if it did not.
	Status int
	// Bytes is how much of the answer's body was written to the client.
	Bytes int64
	// Accepted is when it was passed on. It and the other times have readings of the monotonic clock.
	Accepted time.Time
	// First is when the first byte of the answer's body was written to the client; zero if none was.
	First time.Time
	// Last is when the last byte was, of a request that was Completed or Refused; when it became known that the upstream has
	// failed or that the client has left, of the others.
	Last time.Time
}

// Took is how long a request had the upstream.
func (r Result) Took() time.Duration { return r.Last.Sub(r.Accepted) }

func (r Result) String() string {
	if r.Reason == "" {
		return r.Outcome.String()
	}
	return fmt.Sprintf("%s: %s", r.Outcome, r.Reason)
}
