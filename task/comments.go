package task

import (
	"fmt"
	"strings"
)

// Comments separates Go source into its code and the text of its comments, which look very different. Each file of comments is one comment
// that documents a declaration or a package: lines at the margin that begin with // and a space or tab, without these marks. Comments of
// fewer than least bytes, copyright notices and second copies are left out. The files of code have no line that is a comment.
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
