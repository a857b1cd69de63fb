// Package continuation has one provider go on with a chat's answer that another one began: what was said of it, whether somebody else can say
// the rest, how that is asked for, and how its events become those of the answer that has begun. It sends nothing, and keeps text in memory alone.
package continuation

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxText bounds what is kept of an answer's text, in bytes. Nobody goes on with a longer one.
const maxText = 1 << 20

// maxHead bounds an answer's id, and the like, in bytes: each event of who goes on would have it again.
const maxHead = 512

// Said is what a caller has got of a chat's answer.
type Said struct {
	head   []Member // id, created and model of its first event, which all of its events have
	text   []byte
	joint  []byte // white space at the end of text, which who goes on is asked for again and which is not passed on again
	tokens int64
	other  bool // something else than plain text was said, or more of it than is kept
	over   bool // the end was said: what may follow are figures
}

// Plain reports whether it is text alone, all of it is kept, and the end is missing: somebody else can say the rest.
func (s *Said) Plain() bool { return !s.other && !s.over }

// Over reports whether the end was said, with or without the figures behind it.
func (s *Said) Over() bool { return s.over }

// Begun reports whether some text was said.
func (s *Said) Begun() bool { return len(s.text) > 0 }

// Tokens is how many tokens were said, about: one for each event, more for a long one.
func (s *Said) Tokens() int64 { return s.tokens }

// Plain reports whether the answer to a request is one of plain text, whose rest may be asked for by itself. Callers tell that it is a streamed chat.
func Plain(request []Member) bool {
	return !slices.ContainsFunc(request, func(m Member) bool { return !empty(m.Value) && !slices.Contains(indifferent, m.Name) && !m.plain() })
}

// indifferent are members of a request under which the rest of an answer, asked for by itself, is the rest of that answer. Others may say what
// the text is to look like from its beginning on, as grammars do.
var indifferent = []string{
	"model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "logit_bias",
	"frequency_penalty", "presence_penalty", "repetition_penalty", "tools", "tool_choice", "parallel_tool_calls", "user", "metadata", "store", "service_tier",
	"safety_identifier", "prompt_cache_key", "chat_template_kwargs", "reasoning_effort",
}

// plain reports whether a Member asks for one answer of plain text.
func (m Member) plain() bool {
	switch m.Name {
	case "n":
		return string(m.Value) == "1"
	case "logprobs":
		return string(m.Value) == "false"
	case "response_format":
		all, err := Members(m.Value)
		return err == nil && len(all) == 1 && all[0].Name == "type" && string(all[0].Value) == `"text"`
	case "messages": // whoever ends with an answer's beginning has asked for the rest of that
		var messages []struct{ Role string }
		return json.Unmarshal(m.Value, &messages) == nil && (len(messages) == 0 || messages[len(messages)-1].Role != "assistant")
	}
	return false
}

// empty reports whether a value says nothing.
func empty(value json.RawMessage) bool {
	return slices.Contains([]string{"", "null", `""`, "[]", "{}"}, string(value))
}

// Ends reports whether a finish_reason says that its choice is whole: "abort" and "error" are of servers that gave it up.
func Ends(finish json.RawMessage) bool {
	return !empty(finish) && string(finish) != `"abort"` && string(finish) != `"error"`
}

// done reports whether an event is the last one.
func done(event []byte) bool { return string(bytes.TrimSpace(event)) == "[DONE]" }

// Hear keeps what an event says, which is its data.
func (s *Said) Hear(event []byte) {
	if done(event) || empty(bytes.TrimSpace(event)) {
		return
	}
	all, err := Members(event)
	if s.head == nil {
		s.head = slices.DeleteFunc(all, func(m Member) bool { return !shared(m.Name) })
		s.other = s.other || slices.ContainsFunc(s.head, func(m Member) bool { return len(m.Value) > maxHead })
	}
	var e struct {
		Choices []struct {
			Index    int
			Delta    map[string]json.RawMessage
			Finish   json.RawMessage `json:"finish_reason"`
			Logprobs json.RawMessage
		}
	}
	if err != nil || json.Unmarshal(event, &e) != nil {
		s.other = true
	}
	for _, choice := range e.Choices {
		s.other = s.other || choice.Index != 0 || !empty(choice.Logprobs)
		s.over = s.over || Ends(choice.Finish)
		for name, value := range choice.Delta {
			switch {
			case name == "role" || empty(value):
			case name == "content":
				s.add(value)
			default:
				s.other = true
			}
		}
	}
}

// add keeps a piece of text. One with a character that could not be read is not what was said: it stands for others that the caller has.
func (s *Said) add(value json.RawMessage) {
	var piece string
	if json.Unmarshal(value, &piece) != nil || strings.ContainsRune(piece, utf8.RuneError) || len(s.text)+len(piece) > maxText {
		s.text, s.other = nil, true
		return
	}
	s.text = append(s.text, piece...)
	if s.tokens++; len(piece) > longToken {
		s.tokens += int64(len(piece)/bytesPerToken) - 1
	}
}

// bytesPerToken is how many bytes of text a token has, about.
const bytesPerToken = 4

// longToken is the bytes of a piece of text from which on it is taken for several tokens.
const longToken = 16

// shared reports whether a Member is the same in all events of an answer.
func shared(name string) bool { return name == "id" || name == "created" || name == "model" }

// Splice makes an event of the answer that goes on one of the answer that has begun: with its id, created and model, and without what has been
// said, the role, or would count a part of the answer for all of it, the usage. What is left of some is nothing; not ok: it is no chat's event.
func (s *Said) Splice(event []byte) (out []byte, ok bool) {
	switch {
	case done(event):
		return []byte("data: [DONE]\n\n"), true
	case empty(bytes.TrimSpace(event)):
		return nil, true
	}
	all, err := members(event, true)
	if err != nil {
		return nil, false
	}
	mute := true
	for i := range all {
		switch m := &all[i]; {
		case shared(m.Name):
			m.Value = nil
			if at := slices.IndexFunc(s.head, func(own Member) bool { return own.Name == m.Name }); at >= 0 {
				m.Value = s.head[at].Value
			}
		case m.Name == "usage" && !empty(m.Value):
			m.Value = nil
		case m.Name == "choices":
			if m.Value, mute, err = s.spliced(m.Value); err != nil {
				return nil, false
			}
		}
	}
	if mute {
		return nil, true
	}
	return slices.Concat([]byte("data: "), Object(all), []byte("\n\n")), true
}

// spliced are the choices of an event that goes on with an answer; mute: they say nothing.
func (s *Said) spliced(value json.RawMessage) (out json.RawMessage, mute bool, err error) {
	var choices []json.RawMessage
	if empty(value) {
		return value, true, nil
	}
	if err := json.Unmarshal(value, &choices); err != nil {
		return nil, false, err
	}
	choices = slices.DeleteFunc(choices, func(choice json.RawMessage) bool { return empty(choice) })
	mute = true
	for i, choice := range choices {
		all, err := members(choice, true)
		if err != nil {
			return nil, false, err
		}
		for i := range all {
			m := &all[i]
			if m.Name == "delta" {
				var delta []Member
				if !empty(m.Value) {
					if delta, err = members(m.Value, true); err != nil {
						return nil, false, err
					}
				}
				delta = slices.DeleteFunc(delta, func(m Member) bool { return m.Name == "role" })
				if at := slices.IndexFunc(delta, func(m Member) bool { return m.Name == "content" }); at >= 0 {
					delta[at].Value = s.unspoken(delta[at].Value)
				}
				mute = mute && !slices.ContainsFunc(delta, func(m Member) bool { return !empty(m.Value) })
				m.Value = Object(delta)
			}
			mute = mute && (m.Name != "finish_reason" || empty(m.Value))
		}
		choices[i] = Object(all)
	}
	return slices.Concat([]byte{'['}, bytes.Join(raws(choices), []byte{','}), []byte{']'}), mute, nil
}

func raws(values []json.RawMessage) [][]byte {
	out := make([][]byte, len(values))
	for i, v := range values {
		out[i] = v
	}
	return out
}

// unspoken takes the white space that was said already off a piece of text. One with a character that could not be read is left as it is.
func (s *Said) unspoken(value json.RawMessage) json.RawMessage {
	var piece string
	if len(s.joint) == 0 || json.Unmarshal(value, &piece) != nil || piece == "" {
		return value
	}
	n := 0
	for n < min(len(piece), len(s.joint)) && piece[n] == s.joint[n] {
		n++
	}
	for !utf8.RuneStart((piece + "a")[n]) {
		n--
	}
	if s.joint = s.joint[n:]; n < len(piece) {
		s.joint = nil
	}
	if n == 0 || strings.ContainsRune(piece, utf8.RuneError) {
		return value
	}
	value, _ = json.Marshal(piece[n:])
	return value
}

// Rest asks for what is missing of an answer: what was said of it is the beginning of the last message, and nothing is added in words. White space
// at its end is left out, since some servers' templates trim it: it is said again, and Splice takes it off. It is not ok if the tokens that the answer may have are used up.
func (s *Said) Rest(request []Member) (rest []Member, ok bool) {
	begun := bytes.TrimRightFunc(s.text, unicode.IsSpace)
	if len(begun) == 0 {
		begun = s.text
	}
	s.joint = slices.Clone(s.text[len(begun):])
	text, _ := json.Marshal(string(begun))
	rest = []Member{{"continue_final_message", []byte("true")}, {"add_generation_prompt", []byte("false")}}
	for _, m := range request {
		switch m.Name {
		case "continue_final_message", "add_generation_prompt": // that says nothing, or the request is not Plain
			continue
		case "messages":
			list := bytes.TrimSuffix(bytes.TrimSpace(m.Value), []byte("]"))
			if len(bytes.TrimSpace(list)) > 1 {
				list = slices.Concat(list, []byte{','})
			}
			m.Value = slices.Concat(list, []byte(`{"role":"assistant","content":`), text, []byte(`}]`))
		case "max_tokens", "max_completion_tokens":
			var n *int64
			if json.Unmarshal(m.Value, &n) == nil && n != nil {
				if *n -= s.tokens; *n < 1 {
					return nil, false
				}
				m.Value, _ = json.Marshal(*n)
			}
		}
		rest = append(rest, m)
	}
	return rest, true
}
