//! Reading files, compressed by gzip or not, into memory of exactly the right size.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::DataError;

/// Bytes that are taken on trust before any was read.
const FIRST: usize = 1 << 16;

/// A stream of bytes that knows its name and its place.
pub(super) struct Input<'a> {
    path: PathBuf,
    read: Box<dyn Read + 'a>,
    /// Bytes given so far, after decompression.
    at: u64,
    /// Bytes of the file as it lies on disk: the first buffer is no larger.
    stored: usize,
}

impl<'a> Input<'a> {
    /// Opens a file.
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let failed = |error| DataError::io(path, "could not be opened", error);
        let file = File::open(path).map_err(failed)?;
        let stored = file.metadata().map_err(failed)?;
        // A folder opens on some systems and fails at the first read.
        if stored.is_dir() {
            return Err(DataError::content(path, "file type", "a folder", "a file"));
        }
        let stored = usize::try_from(stored.len()).unwrap_or(usize::MAX);
        Self::new(path, BufReader::with_capacity(FIRST, file), stored)
    }

    /// Reads from memory; `name` stands in messages.
    #[cfg(any(test, feature = "bundled"))]
    pub(super) fn memory(name: &str, bytes: &'a [u8]) -> Result<Self, DataError> {
        Self::new(Path::new(name), bytes, bytes.len())
    }

    fn new(path: &Path, mut read: impl BufRead + 'a, stored: usize) -> Result<Self, DataError> {
        let head =
            read.fill_buf().map_err(|error| DataError::io(path, "could not be read", error))?;
        let read: Box<dyn Read + 'a> = if head.starts_with(&[0x1f, 0x8b]) {
            Box::new(flate2::bufread::MultiGzDecoder::new(read))
        } else {
            Box::new(read)
        };
        Ok(Self { path: path.to_owned(), read, at: 0, stored })
    }

    /// The file's name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file as it lies on disk.
    pub(super) fn stored(&self) -> usize {
        self.stored
    }

    /// The error that this place of the file holds the wrong thing.
    pub(super) fn wrong(
        &self,
        place: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> DataError {
        DataError::content(&self.path, place, found, expected)
    }

    /// Reads until the buffer is full or the file ends; gives how much was read.
    pub(super) fn fill(&mut self, mut buffer: &mut [u8]) -> Result<usize, DataError> {
        let mut count = 0;
        while !buffer.is_empty() {
            match self.read.read(buffer) {
                Ok(0) => break,
                Ok(n) => {
                    count += n;
                    self.at += n as u64;
                    buffer = buffer.get_mut(n..).unwrap_or_default();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let found = format!("damaged or cut-off compressed data ({error})");
                    return Err(match error.kind() {
                        ErrorKind::UnexpectedEof
                        | ErrorKind::InvalidData
                        | ErrorKind::InvalidInput => {
                            self.wrong(format!("byte {}", self.at), found, "a whole gzip file")
                        }
                        _ => DataError::io(&self.path, "could not be read", error),
                    });
                }
            }
        }
        Ok(count)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, place: &str) -> Result<[u8; N], DataError> {
        let mut bytes = [0; N];
        let got = self.fill(&mut bytes)?;
        if got == N { Ok(bytes) } else { Err(self.short(place, got, N)) }
    }

    /// The next `count` bytes, in a buffer of that capacity. Where the file has fewer, no more
    /// than the file's size or twice what it gave is ever allocated.
    pub(super) fn take(&mut self, count: u64, place: &str) -> Result<Vec<u8>, DataError> {
        let claim = count;
        let Ok(count) = usize::try_from(claim) else { return Err(self.too_large(place, claim)) };
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let had = bytes.len();
            let step = (count - had).min(had.max(self.stored).max(1));
            if bytes.try_reserve_exact(step).is_err() {
                return Err(self.too_large(place, claim));
            }
            bytes.resize(had + step, 0);
            let got = self.fill(bytes.get_mut(had..).unwrap_or_default())?;
            if got < step {
                return Err(self.short(place, had + got, count));
            }
        }
        Ok(bytes)
    }

    /// Checks that the file ends here (and so, of a compressed file, its checksum).
    pub(super) fn end(&mut self) -> Result<(), DataError> {
        let at = self.at;
        match self.fill(&mut [0])? {
            0 => Ok(()),
            _ => Err(self.wrong(format!("byte {at}"), "more bytes", "the end of the file")),
        }
    }

    fn too_large(&self, place: &str, claim: u64) -> DataError {
        self.wrong(place, format!("a claim of {claim} bytes"), "no more than memory can hold")
    }

    fn short(&self, place: &str, got: usize, expected: usize) -> DataError {
        self.wrong(place, format!("the file's end after {got} bytes"), format!("{expected} bytes"))
    }
}
