//! What names mean within a kernel.

use std::collections::HashMap;

use super::token::number;
use super::{ParseError, Result, error};
use crate::code::{Address, Slot, Special};

/// What a name of memory stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Symbol {
    /// An offset in the block's shared memory.
    Shared(u64),
    /// An offset in the thread's own memory.
    Local(u64),
    /// One of the module's arrays.
    Global(u32),
    /// An offset among the parameters.
    Param(u64),
}

/// An operand as it is written.
#[derive(Clone, Debug)]
pub(super) enum Operand<'a> {
    Word(&'a str),
    Negative(&'a str),
    /// The other of a predicate.
    Not(&'a str),
    List(Vec<Operand<'a>>),
    Address(&'a str, i32),
}

/// Constants are gathered behind registers whose number is known only at the end; until then
/// their slots have this bit.
const CONSTANT: Slot = 1 << 31;
const SPECIAL: Slot = 1 << 30;
/// What is written here is never read.
pub(super) const NOWHERE: Slot = 0;

/// Names and the frame that they build up.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    /// The block of each nested block, and by it the names that it declares.
    parents: Vec<usize>,
    current: usize,
    registers: HashMap<(usize, &'a str), Slot>,
    /// Families like `%r<5>`: the prefix, with how many there are.
    families: HashMap<(usize, &'a str), u64>,
    labels: HashMap<(usize, &'a str), u32>,
    tables: HashMap<(usize, &'a str), Vec<&'a str>>,
    pub symbols: HashMap<&'a str, Symbol>,
    count: Slot,
    pub specials: Vec<Special>,
    pub constants: Vec<u64>,
    by_value: HashMap<u64, Slot>,
    /// Constants that are addresses of the module's arrays.
    pub addresses: Vec<(u32, u32)>,
}

impl<'a> Scope<'a> {
    pub fn new(symbols: HashMap<&'a str, Symbol>) -> Self {
        Self {
            parents: vec![0],
            current: 0,
            registers: HashMap::new(),
            families: HashMap::new(),
            labels: HashMap::new(),
            tables: HashMap::new(),
            symbols,
            // The first is `NOWHERE`.
            count: 1,
            specials: Vec::new(),
            constants: Vec::new(),
            by_value: HashMap::new(),
            addresses: Vec::new(),
        }
    }

    pub fn open(&mut self) {
        self.parents.push(self.current);
        self.current = self.parents.len() - 1;
    }

    pub fn close(&mut self) {
        self.current = self.parents[self.current];
    }

    pub const fn current(&self) -> usize {
        self.current
    }

    /// Goes to a block that was open before, to resolve names in it.
    pub const fn enter(&mut self, block: usize) {
        self.current = block;
    }

    pub fn declare(&mut self, name: &'a str, family: Option<u64>) {
        match family {
            Some(count) => {
                self.families.insert((self.current, name), count);
            }
            None => {
                self.registers.insert((self.current, name), self.count);
                self.count += 1;
            }
        }
    }

    pub fn label(&mut self, name: &'a str, statement: u32) {
        self.labels.insert((self.current, name), statement);
    }

    pub fn table(&mut self, name: &'a str, labels: Vec<&'a str>) {
        self.tables.insert((self.current, name), labels);
    }

    /// The blocks around the current one, from within.
    fn blocks(&self) -> impl Iterator<Item = usize> + use<'_> {
        std::iter::successors(Some(self.current), |&block| {
            (block != 0).then(|| self.parents[block])
        })
    }

    pub fn target(&self, name: &'a str) -> Result<u32> {
        let found = self.blocks().find_map(|block| self.labels.get(&(block, name)));
        found.copied().ok_or_else(|| ParseError(format!("label {name} is not declared")))
    }

    pub fn targets(&self, table: &'a str) -> Result<Box<[u32]>> {
        let found = self.blocks().find_map(|block| self.tables.get(&(block, table)));
        let Some(labels) = found else { return error(format!("table {table} is not declared")) };
        labels.iter().map(|label| self.target(label)).collect()
    }

    fn register(&mut self, name: &'a str) -> Option<Slot> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let index: Option<u64> = name[prefix.len()..].parse().ok();
        for block in std::iter::successors(Some(self.current), |&block| {
            (block != 0).then(|| self.parents[block])
        }) {
            if let Some(&slot) = self.registers.get(&(block, name)) {
                return Some(slot);
            }
            let family = self.families.get(&(block, prefix));
            if family.zip(index).is_some_and(|(count, index)| index < *count) {
                let slot = self.count;
                self.count += 1;
                self.registers.insert((block, name), slot);
                return Some(slot);
            }
        }
        None
    }

    pub fn constant(&mut self, value: u64) -> Slot {
        let next = CONSTANT | self.constants.len() as Slot;
        let slot = *self.by_value.entry(value).or_insert(next);
        if slot == next {
            self.constants.push(value);
        }
        slot
    }

    /// A register to write, or nothing.
    pub fn destination(&mut self, operand: &Operand<'a>) -> Result<Slot> {
        match *operand {
            Operand::Word("_") => Ok(NOWHERE),
            Operand::Word(name) => self
                .register(name)
                .map_or_else(|| error(format!("register {name} is not declared")), Ok),
            _ => error(format!("{operand:?} is no register")),
        }
    }

    /// A value to read.
    pub fn value(&mut self, operand: &Operand<'a>) -> Result<Slot> {
        let name = match *operand {
            Operand::Word(name) => name,
            Operand::Negative(text) => {
                let value = number(text).map_or_else(|| error(format!("number -{text}")), Ok)?;
                return Ok(self.constant(value.wrapping_neg()));
            }
            _ => return error(format!("{operand:?} is no value")),
        };
        if let Some(slot) = self.register(name) {
            return Ok(slot);
        }
        if let Some(value) = number(name) {
            return Ok(self.constant(value));
        }
        if name == "WARP_SZ" {
            return Ok(self.constant(32));
        }
        if let Some(special) = Special::parse(name) {
            let known = self.specials.iter().position(|s| *s == special);
            let index = known.unwrap_or_else(|| {
                self.specials.push(special);
                self.specials.len() - 1
            });
            return Ok(SPECIAL | index as Slot);
        }
        match self.symbols.get(name) {
            Some(&(Symbol::Shared(at) | Symbol::Local(at) | Symbol::Param(at))) => {
                Ok(self.constant(at))
            }
            Some(&Symbol::Global(index)) => {
                let constant = self.constants.len() as Slot;
                self.constants.push(0);
                self.addresses.push((constant, index));
                Ok(CONSTANT | constant)
            }
            None => error(format!("{name} is not declared")),
        }
    }

    pub fn address(&mut self, operand: &Operand<'a>) -> Result<Address> {
        let Operand::Address(base, offset) = *operand else {
            return error(format!("{operand:?} is no address"));
        };
        Ok(Address { base: self.value(&Operand::Word(base))?, offset })
    }

    /// Registers, special registers and constants, one behind the other.
    pub const fn place(&self, slot: Slot) -> Slot {
        if slot & CONSTANT != 0 {
            self.count + self.specials.len() as Slot + (slot & !CONSTANT)
        } else if slot & SPECIAL != 0 {
            self.count + (slot & !SPECIAL)
        } else {
            slot
        }
    }

    pub const fn registers(&self) -> Slot {
        self.count
    }
}
