// Package clients holds what the clients that OpenAI, Vercel and ollama publish, as they are, see of an inference server that is rented by the
// request, or bought by the local proxy from several: answers, streams, tools, embeddings, lists of models, errors, and the end of a request that
// they abort.
package clients
