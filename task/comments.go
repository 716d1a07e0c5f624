package task

import (
	"fmt"
	"strings"
)

// Comments divides Go source into code, and what comments say: two texts that look nothing alike. A file of comments is one
// comment of lines that begin with // and a space or tab at the margin, without these marks: what documents a declaration or a package. Shorter
// ones than least bytes are left out, and so are the authors' rights and second copies. The code is the files without any line
// that is a comment.
func Comments(source Text, least int) (code, comments Text) {
	code, comments = Text{Path: source.Path}, Text{Path: source.Path}
	seen := map[string]bool{}
	for _, f := range source.Files {
		var rest, block strings.Builder
		n := 0
		end := func() {
			text := block.String()
			block.Reset()
			if len(text) < least || strings.HasPrefix(text, "Copyright") || seen[text] {
				return
			}
			seen[text] = true
			n++
			comments.Files = append(comments.Files, File{Name: fmt.Sprintf("%s#%d", f.Name, n), Data: []byte(text)})
		}
		for line := range strings.Lines(string(f.Data)) {
			switch {
			case strings.HasPrefix(line, "// ") || strings.HasPrefix(line, "//\t") || strings.TrimRight(line, "\r\n") == "//":
				block.WriteString(strings.TrimPrefix(strings.TrimPrefix(line, "//"), " "))
			case strings.HasPrefix(strings.TrimSpace(line), "//"):
				end()
			default:
				end()
				rest.WriteString(line)
			}
		}
		end()
		if data := strings.TrimLeft(rest.String(), "\r\n"); data != "" {
			code.Files = append(code.Files, File{Name: f.Name, Data: []byte(data)})
		}
	}
	return code, comments
}
