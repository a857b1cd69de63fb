// Package proxy is OpenAI's API on this machine, paid for by the request. A program sends what it sends to any server of that API; for
// each request a Server chooses a provider by sdk/route, reserves what the answer can cost at the most of the day's budget, passes the
// request on, and corrects the reservation by what the answer took.
//
// Until the first event of an answer has been sent to the caller, a provider that fails is replaced by the next one, unseen. After it the
// caller is told by an error event in the stream: no answer ends in silence. A provider's failure costs nothing, so that an answer is paid
// once, however many providers it took.
//
// What goes to a provider is the body, without the options that are for the proxy, and its media type. Credentials of callers are not
// passed on. Prompts, answers and keys are in no log, metric, file or error.
package proxy
