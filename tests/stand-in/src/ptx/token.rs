//! Words and signs.

use super::{ParseError, Result, error};

/// A word (a name, an opcode, a directive or a number), a string with its quotes, or a sign.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub text: &'a str,
    /// Where it begins in the source.
    pub at: usize,
    /// The line, from 1.
    pub line: usize,
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

pub(super) fn tokens(source: &str) -> Result<Vec<Token<'_>>> {
    let bytes = source.as_bytes();
    let (mut list, mut at, mut line) = (Vec::new(), 0, 1);
    while at < bytes.len() {
        let start = at;
        let begun = line;
        if bytes[at..].starts_with(b"//") {
            at += source[at..].find('\n').unwrap_or(source.len() - at);
            continue;
        }
        if bytes[at..].starts_with(b"/*") {
            let Some(len) = source[at..].find("*/") else {
                return error("a comment is not closed");
            };
            line += source[at..at + len].matches('\n').count();
            at += len + 2;
            continue;
        }
        match bytes[at] {
            b'\n' => {
                line += 1;
                at += 1;
                continue;
            }
            c if c.is_ascii_whitespace() || c == 0 => {
                at += 1;
                continue;
            }
            b'"' => {
                let len = source[at + 1..].find('"');
                let len = len.ok_or_else(|| ParseError("a string is not closed".into()))?;
                at += len + 2;
            }
            c if is_word(c) => {
                // `shared::cta` is one word, a label's colon is none of it.
                while at < bytes.len() && (is_word(bytes[at]) || bytes[at..].starts_with(b"::")) {
                    at += if bytes[at] == b':' { 2 } else { 1 };
                }
            }
            c if c.is_ascii() => at += 1,
            _ => return error(format!("line {line} is not ASCII")),
        }
        list.push(Token { text: &source[start..at], at: start, line: begun });
    }
    Ok(list)
}

/// An integer in decimal, hexadecimal, octal or binary, or a float by its bits.
pub(super) fn number(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches('U');
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let radix = |prefix: usize, radix| u64::from_str_radix(digits.get(prefix..)?, radix).ok();
    match digits.get(..2) {
        Some("0f" | "0F" | "0d" | "0D" | "0x" | "0X") => radix(2, 16),
        Some("0b" | "0B") => radix(2, 2),
        _ if digits.len() > 1 && digits.starts_with('0') => radix(1, 8),
        _ => digits.parse().ok(),
    }
}
