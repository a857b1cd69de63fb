// Package upstream passes requests on to an inference server that runs already (vLLM, SGLang, TGI, llama.cpp, ollama), and says of
// each how it ended. It knows no payment: whoever bills reads the Result.
//
// A Proxy serves the routes of inference and of models, and those that its operator names. All others are answered with 404,
// and control routes of any engine are in no table and under no prefix. A request is taken in by Proxy.Accept, which
// reads its body within bounds, so that a slow upload holds nothing of the upstream; Call.Forward passes it on.
//
// What goes to the upstream is made anew: the path is the one that was matched, the length that of the body, the headers
// are those of a short list, and the upstream's own credential. No header of a caller but those is passed on, so that neither its
// keys nor anything by which a hop is misled gets there. What comes back goes out at once, piece by piece. Of a stream a Proxy keeps
// at most StreamBound bytes, and reads no further while its client does not.
//
// The first thing that goes wrong decides how a request ended: an upstream that breaks off because its client has left did not
// fail, and a client that leaves a stream in which the upstream has reported an error did not abort it. A stream is judged by
// its structure and never by its text: a model that writes "error" has answered.
//
// Prompts, answers and keys are in no error, and nothing is logged.
package upstream
