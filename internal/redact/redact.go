// Package redact takes out of what is shown, in an error, a log, a table, what must not be: secrets in addresses, and whatever
// in a stranger's words steers a terminal.
package redact

import (
	"net/url"
	"strings"
	"unicode"
)

// Text leaves of a stranger's words what cannot steer a terminal, forge a line of their own or turn the direction in which the
// rest is read: what is printed. A line's end becomes "; ".
func Text(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ReplaceAll(s, "\n", "; "))
}

// hidden stands for an address of which nothing can be shown, since it is not known where in it a secret ends.
const hidden = "the given address"

// URL leaves of a URL its scheme and its host. Its user, path and query often are the key to a database or to an RPC endpoint.
// What is no URL is shown if it is a host and a port at most.
func URL(address string) string {
	if !strings.ContainsAny(address, "/?#@=% ") {
		return address
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme == "" || u.Host == "" || Cut(address) {
		return hidden
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host}).String()
}

// Database is URL for the address of a database, which is the path of a file unless it is a URL or a list of settings.
func Database(address string) string {
	if strings.Contains(address, "://") {
		return URL(address)
	}
	if strings.Contains(address, "password=") {
		return hidden
	}
	return address
}

// List is URL for each of several addresses with commas between them, and leaves any other text as it is.
func List(text string) string {
	if !strings.Contains(text, "://") {
		return text
	}
	items := strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
	for i := range items {
		items[i] = URL(items[i])
	}
	return strings.Join(items, ",")
}

// Cut reports whether a password in a URL may be cut in two by one of its own characters: what looks like host and path is
// the user and the password then.
func Cut(address string) bool {
	_, rest, _ := strings.Cut(address, "://")
	end := strings.IndexAny(rest, "/?#@")
	return end >= 0 && rest[end] != '@' && strings.Contains(rest[end:], "@")
}

// maxAnswer bounds what of a server's own words is shown.
const maxAnswer = 120

// Line makes one short line of what a server said, which may be a page of HTML.
func Line(text string) string {
	text = Text(strings.Join(strings.Fields(text), " "))
	if len(text) > maxAnswer {
		text = strings.ToValidUTF8(text[:maxAnswer], "") + "..."
	}
	return text
}
