//! Rust text without its comments and literals, so that a rule about code is not broken by a
//! sentence about code. Lines stay where they are.

/// Replaces comments, strings and characters by blanks.
pub(super) fn code_only(text: &str) -> String {
    let mut lexer = Lexer {
        rest: text,
        code: String::with_capacity(text.len()),
    };
    while let Some(first) = lexer.rest.chars().next() {
        lexer.step(first);
    }
    lexer.code
}

struct Lexer<'a> {
    rest: &'a str,
    code: String,
}

impl Lexer<'_> {
    fn step(&mut self, first: char) {
        if self.rest.starts_with("//") {
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.blank(end);
        } else if self.rest.starts_with("/*") {
            self.block_comment();
        } else if first == '"' {
            self.string();
        } else if first == '\'' {
            self.character_or_lifetime();
        } else if first.is_alphabetic() || first == '_' {
            self.word();
        } else {
            self.keep(first.len_utf8());
        }
    }

    /// Words are taken whole: only then is the `r` of a raw string told from the end of a name.
    fn word(&mut self) {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, after) = self.rest.split_at(end);
        let hashes = after.len() - after.trim_start_matches('#').len();
        let is_raw = ["r", "br", "cr"].contains(&word) && after[hashes..].starts_with('"');
        self.keep(end);
        if is_raw {
            let close = format!("\"{}", "#".repeat(hashes));
            let start = hashes + 1;
            let found = self.rest[start..].find(&close);
            let end = found.map_or(self.rest.len(), |at| start + at + close.len());
            self.blank(end);
        }
    }

    fn block_comment(&mut self) {
        let (mut depth, mut at) = (0_usize, 0);
        while at < self.rest.len() {
            let rest = &self.rest[at..];
            if rest.starts_with("/*") {
                depth += 1;
                at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    break;
                }
            } else {
                at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
        self.blank(at);
    }

    fn string(&mut self) {
        let end = end_of_quoted(self.rest, '"');
        self.blank(end);
    }

    /// `'a'` and `'\n'` are characters, `'a` is a lifetime.
    fn character_or_lifetime(&mut self) {
        let mut chars = self.rest.chars().skip(1);
        let (second, third) = (chars.next(), chars.next());
        if second == Some('\\') || third == Some('\'') {
            let end = end_of_quoted(self.rest, '\'');
            self.blank(end);
        } else {
            self.keep(1);
        }
    }

    fn keep(&mut self, bytes: usize) {
        let (kept, rest) = self.rest.split_at(bytes);
        self.code.push_str(kept);
        self.rest = rest;
    }

    fn blank(&mut self, bytes: usize) {
        let (gone, rest) = self.rest.split_at(bytes);
        self.code
            .extend(gone.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        self.rest = rest;
    }
}

/// Where a literal ends that begins with `quote`, backslashes considered.
fn end_of_quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return at + c.len_utf8();
        }
    }
    text.len()
}

/// True if `line` has `word` with nothing of a name on either side.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, gone: bool) {
        let code = code_only(text);
        assert_eq!(!code.contains("target"), gone, "{text:?} became {code:?}");
        assert_eq!(code.lines().count(), text.lines().count());
    }

    #[test]
    fn code_stays_and_everything_else_goes() {
        check("use target;", false);
        check("// target", true);
        check("let x = 1; // target\nlet y = 2;", true);
        check("/* a /* target */ target */ let x;", true);
        check("/* a */ target", false);
        check("let x = \"target\";", true);
        check("let x = \"\\\" // \"; target", false);
        check("let url = \"http://x\"; target", false);
        check("let x = r#\"a \" target\"#;", true);
        check("let x = r\"\\\"; target", false);
        check("let x = br\"target\";", true);
        check("let other = 1; r#target", false);
        check("let quote = '\"'; target", false);
        check("let quote = '\\''; target", false);
        check("fn f<'a>(x: &'a str) { target }", false);
        check("let x = \"unfinished target", true);
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("use glob::a;", "glob"));
        assert!(has_word("a(glob)", "glob"));
        assert!(!has_word("my_glob globe", "glob"));
    }
}
