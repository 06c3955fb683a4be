//! The digest of what a run is made of.

use crc::{CRC_64_XZ, Crc, Table};
use postcard::ser_flavors::Flavor;
use serde::Serialize;

/// CRC-64/XZ with a table of 2 KiB, linked only where digests are made.
static CRC64: Crc<u64, Table<1>> = Crc::<u64, Table<1>>::new(&CRC_64_XZ);

/// A digest of 64 bits (CRC-64/XZ) over bytes and values. It tells runs apart; it is no
/// protection against somebody who wants two of them to be equal.
///
/// ```
/// use sepal_core::format::Digest;
/// let mut digest = Digest::new();
/// digest.bytes(b"123456789");
/// assert_eq!(digest.finish(), 0x995d_c9bb_df19_39fa);
/// ```
#[derive(Clone)]
pub struct Digest(crc::Digest<'static, u64, Table<1>>);

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for Digest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Digest({:#018x})", self.clone().finish())
    }
}

impl Digest {
    /// Over nothing yet.
    pub fn new() -> Self {
        Self(CRC64.digest())
    }

    /// Adds bytes, such as those of a data set.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds a value by its postcard bytes, such as a net, a recipe or a strategy.
    ///
    /// ```
    /// use sepal_core::{format::Digest, optim::Rule};
    /// let of = |rule: Rule| {
    ///     let mut digest = Digest::new();
    ///     digest.value(&rule);
    ///     digest.finish()
    /// };
    /// assert_ne!(of(Rule::adam()), of(Rule::adamw(0.01)));
    /// ```
    pub fn value<T: Serialize + ?Sized>(&mut self, value: &T) {
        let mut out = postcard::Serializer { output: Into(self) };
        // Only types that give no length of a sequence beforehand fail; none of this crate does.
        let _ = value.serialize(&mut out);
    }

    /// The digest.
    pub fn finish(self) -> u64 {
        self.0.finalize()
    }
}

/// Where postcard writes to.
struct Into<'a>(&'a mut Digest);

impl Flavor for Into<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.bytes(data);
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.try_extend(&[data])
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}
