package proxy

import "encoding/json"

// spoken is what of an answer, or of one event of it, are tokens.
type spoken struct {
	Choices []struct {
		Index   int             `json:"index"`
		Finish  json.RawMessage `json:"finish_reason"`
		Delta   words           `json:"delta"`
		Message words           `json:"message"`
		Text    string          `json:"text"`
	} `json:"choices"`
	Type   string          `json:"type"`
	Delta  json.RawMessage `json:"delta"`
	Output json.RawMessage `json:"output"`
}

type words struct {
	Content   json.RawMessage `json:"content"`
	Reasoning string          `json:"reasoning_content"`
	Tools     json.RawMessage `json:"tool_calls"`
}

func (w words) size() int { return text(w.Content) + len(w.Reasoning) + text(w.Tools) }

// text is how much is said in a value: of nothing, and of an empty text, none.
func text(value json.RawMessage) int {
	if s := string(value); s == "null" || s == `""` {
		return 0
	}
	return len(value)
}

// tokens counts the tokens of a piece of an answer, about: one for each event that says something, and more for a long one. It is what
// the caller's side saw, not what a provider says that it was.
func tokens(document []byte) int64 { return read(document).tokens() }

func read(document []byte) (s spoken) {
	if len(document) == 0 || document[0] != '{' || json.Unmarshal(document, &s) != nil {
		return spoken{}
	}
	return s
}

func (s spoken) tokens() int64 {
	n := text(s.Delta) + text(s.Output)
	for _, choice := range s.Choices {
		n += choice.Delta.size() + choice.Message.size() + len(choice.Text)
	}
	if n == 0 {
		return 0
	}
	return int64(max(1, n/bytesPerToken))
}
