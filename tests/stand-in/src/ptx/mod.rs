//! From PTX to decoded instructions: names, types and forms are resolved once, here. What is not
//! known is an error, down to the last suffix of an instruction.

mod decode;
mod module;
mod scope;
mod token;

/// Where shared memory lies among generic addresses.
pub(crate) const SHARED: u64 = 0x7100 << 48;
/// Where a thread's own memory lies among generic addresses.
pub(crate) const LOCAL: u64 = 0x7200 << 48;
/// Where parameters lie among generic addresses.
pub(crate) const PARAM: u64 = 0x7300 << 48;
/// The bits by which these are told.
pub(crate) const WINDOW: u64 = 0xffff << 48;

/// PTX that is not understood, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError(pub String);

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseError {}

type Result<T> = std::result::Result<T, ParseError>;

fn error<T>(text: impl Into<String>) -> Result<T> {
    Err(ParseError(text.into()))
}
