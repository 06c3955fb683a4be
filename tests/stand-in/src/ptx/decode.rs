//! Instructions by their opcode, its suffixes and their operands.

use super::scope::{NOWHERE, Operand, Scope};
use super::{LOCAL, PARAM, SHARED, WINDOW};
use super::{Result, error};
use crate::arithmetic::convert::{self, Convert};
use crate::arithmetic::float::{self, Form};
use crate::arithmetic::{Comparison, Kind, Round, Two, Ty, half, integer};
use crate::code::{
    Access, Address, Barrier, Compare, Instruction, Mma, Multiply, Op, Shuffle, Slot, Space, Vote,
};
use crate::counts::Class;

/// An opcode whose suffixes are taken one by one: what is left in the end is not known.
struct Opcode<'a> {
    full: &'a str,
    name: &'a str,
    suffixes: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    fn new(full: &'a str) -> Self {
        let mut parts = full.split('.');
        let name = parts.next().unwrap_or_default();
        Self { full, name, suffixes: parts.collect() }
    }

    fn unknown<T>(&self) -> Result<T> {
        error(format!("instruction {} is not known", self.full))
    }

    /// Takes a suffix where it is there.
    fn has(&mut self, suffix: &str) -> bool {
        let found = self.suffixes.iter().position(|s| *s == suffix);
        found.map(|at| self.suffixes.remove(at)).is_some()
    }

    /// Takes the first suffix of a list that is there.
    fn any<T: Copy>(&mut self, list: &[(&str, T)]) -> Option<T> {
        list.iter().find(|(name, _)| self.has(name)).map(|(_, value)| *value)
    }

    fn one<T: Copy>(&mut self, list: &[(&str, T)]) -> Result<T> {
        self.any(list).map_or_else(|| self.unknown(), Ok)
    }

    /// Takes the first suffix that is a type.
    fn ty(&mut self) -> Result<Ty> {
        let found = self.suffixes.iter().position(|s| Ty::parse(s).is_some());
        let ty = found.and_then(|at| Ty::parse(self.suffixes.remove(at)));
        ty.map_or_else(|| self.unknown(), Ok)
    }

    /// Takes hints to caches, and scopes of consistency: all memory is one here.
    fn ignore_caches(&mut self) {
        let hints = [
            "ca", "cg", "cs", "cv", "lu", "wb", "wt", "cta", "cluster", "gpu", "sys", "acquire",
            "release", "acq_rel", "sc", "noftz",
        ];
        self.suffixes
            .retain(|s| !hints.contains(s) && !s.starts_with("L1::") && !s.starts_with("L2::"));
    }

    fn round(&mut self) -> Option<(Round, bool)> {
        self.any(&[
            ("rn", (Round::Nearest, false)),
            ("rz", (Round::Zero, false)),
            ("rm", (Round::Down, false)),
            ("rp", (Round::Up, false)),
            ("rna", (Round::Away, false)),
            ("rni", (Round::Nearest, true)),
            ("rzi", (Round::Zero, true)),
            ("rmi", (Round::Down, true)),
            ("rpi", (Round::Up, true)),
        ])
    }

    /// Rounding, flushing and saturation of an operation on floats.
    fn form(&mut self) -> Result<Form> {
        let (round, integral) = self.round().unwrap_or((Round::Nearest, false));
        if integral {
            return self.unknown();
        }
        Ok(Form { round, ftz: self.has("ftz"), sat: self.has("sat") })
    }

    fn space(&mut self) -> Space {
        self.any(&[
            ("global", Space::Global),
            ("const", Space::Global),
            ("shared", Space::Shared),
            ("shared::cta", Space::Shared),
            ("local", Space::Local),
            ("param", Space::Param),
        ])
        .unwrap_or(Space::Generic)
    }
}

/// The operands of one instruction, by number.
struct Operands<'s, 'o, 'a> {
    list: &'o [Operand<'a>],
    scope: &'s mut Scope<'a>,
    /// How many the instruction has.
    taken: usize,
}

impl<'a> Operands<'_, '_, 'a> {
    fn get(&mut self, n: usize) -> Result<Operand<'a>> {
        self.taken = self.taken.max(n + 1);
        self.list.get(n).cloned().map_or_else(|| error(format!("operand {} is missing", n + 1)), Ok)
    }

    fn to(&mut self, n: usize) -> Result<Slot> {
        let operand = self.get(n)?;
        self.scope.destination(&operand)
    }

    fn value(&mut self, n: usize) -> Result<Slot> {
        let operand = self.get(n)?;
        self.scope.value(&operand)
    }

    /// A predicate, and whether its other is meant.
    fn predicate(&mut self, n: usize) -> Result<(Slot, bool)> {
        match self.get(n)? {
            Operand::Not(name) => Ok((self.scope.value(&Operand::Word(name))?, true)),
            other => Ok((self.scope.value(&other)?, false)),
        }
    }

    fn address(&mut self, n: usize) -> Result<Address> {
        let operand = self.get(n)?;
        self.scope.address(&operand)
    }

    /// Up to four values or destinations, and how many there are.
    fn several<const N: usize>(&mut self, n: usize, written: bool) -> Result<([Slot; N], u8)> {
        let list = match self.get(n)? {
            Operand::List(list) => list,
            single => vec![single],
        };
        let mut slots = [NOWHERE; N];
        if list.is_empty() || list.len() > N {
            return error(format!("{} elements", list.len()));
        }
        for (slot, operand) in slots.iter_mut().zip(&list) {
            *slot = if written && matches!(operand, Operand::Word(_)) {
                self.scope.destination(operand)?
            } else {
                self.scope.value(operand)?
            };
        }
        Ok((slots, list.len() as u8))
    }

    fn exactly<const N: usize>(&mut self, n: usize, written: bool) -> Result<[Slot; N]> {
        let (slots, count) = self.several(n, written)?;
        if count as usize == N { Ok(slots) } else { error(format!("{count} elements, not {N}")) }
    }

    fn number(&mut self, n: usize) -> Result<u32> {
        let found = match self.get(n)? {
            Operand::Word(text) => super::token::number(text),
            _ => None,
        };
        found.map_or_else(|| error(format!("operand {} is no number", n + 1)), |v| Ok(v as u32))
    }
}

pub(super) fn instruction<'a>(
    guard: Option<(&'a str, bool)>,
    opcode: &'a str,
    list: &[Operand<'a>],
    scope: &mut Scope<'a>,
) -> Result<(Class, Instruction)> {
    let guard = match guard {
        Some((name, wanted)) => Some((scope.value(&Operand::Word(name))?, wanted)),
        None => None,
    };
    let mut code = Opcode::new(opcode);
    let mut operands = Operands { list, scope, taken: 0 };
    let (class, op) = decode(&mut code, &mut operands)?;
    if operands.taken < list.len() {
        return error(format!("{opcode} has {} operands", operands.taken));
    }
    if code.suffixes.is_empty() { Ok((class, Instruction { guard, op })) } else { code.unknown() }
}

fn decode(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>) -> Result<(Class, Op)> {
    let class = match code.name {
        "ld" | "ldu" | "st" | "atom" | "red" | "cp" | "ldmatrix" => return memory(code, list),
        "bra" | "brx" | "ret" | "exit" | "trap" => {
            return Ok((Class::Control, control(code, list)?));
        }
        "bar" | "barrier" | "membar" | "fence" | "nanosleep" => {
            return Ok((Class::Barrier, barrier(code, list)?));
        }
        "shfl" | "vote" | "match" | "redux" | "activemask" => {
            return Ok((Class::Warp, warp(code, list)?));
        }
        "mma" => return Ok((Class::Mma, mma(code, list)?)),
        "setp" | "set" => return Ok((Class::Integer, compare(code, list)?)),
        "cvt" | "cvta" | "isspacep" | "mov" => return Ok((Class::Integer, moves(code, list)?)),
        _ => Class::Integer,
    };
    let float = code.suffixes.iter().any(|s| Ty::parse(s).is_some_and(Ty::is_float));
    let op = if float && !matches!(code.name, "selp" | "slct") {
        floats(code, list)?
    } else {
        integers(code, list)?
    };
    let class = match op {
        Op::Fma { .. } => Class::Fma,
        _ if float && code.name == "fma" => Class::Fma,
        _ if float => Class::Float,
        _ => class,
    };
    Ok((class, op))
}

fn integers(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    let mut name = code.name.to_owned();
    let mut extend = |code: &mut Opcode<'_>, suffixes: &[&str]| {
        for suffix in suffixes {
            if code.has(suffix) {
                name = format!("{name}.{suffix}");
            }
        }
    };
    match code.name {
        "mul" | "mad" => {
            extend(code, &["hi", "wide"]);
            code.has("lo");
        }
        "add" | "sub" => extend(code, &["sat"]),
        "bfind" => extend(code, &["shiftamt"]),
        "shf" => extend(code, &["l", "r", "wrap", "clamp"]),
        "dp4a" => {
            let f = integer::dot(code.ty()?, code.ty()?);
            let Some(f) = f else { return code.unknown() };
            return three(f, list);
        }
        "lop3" => {
            code.ty()?;
            return four(integer::lop3, list);
        }
        "bfi" => {
            let Some(f) = integer::bfi(code.ty()?) else { return code.unknown() };
            return four(f, list);
        }
        "slct" => {
            code.ty()?;
            let by = code.ty()?;
            let name = if by.is_float() { "slct.f32" } else { "slct" };
            let Some(f) = integer::three(name, by) else { return code.unknown() };
            return three(f, list);
        }
        _ => {}
    }
    let ty = code.ty()?;
    if let Some(f) = integer::two(&name, ty) {
        return two(f, list);
    }
    if let Some(f) = integer::three(&name, ty) {
        return three(f, list);
    }
    match integer::one(&name, ty) {
        Some(f) => Ok(Op::One { f, to: list.to(0)?, a: list.value(1)? }),
        None => code.unknown(),
    }
}

fn two(f: Two, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    Ok(Op::Two { f, to: list.to(0)?, a: list.value(1)?, b: list.value(2)? })
}

fn three(f: crate::arithmetic::Three, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    Ok(Op::Three { f, to: list.to(0)?, a: list.value(1)?, b: list.value(2)?, c: list.value(3)? })
}

fn four(f: crate::arithmetic::Four, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    let operands = [list.value(1)?, list.value(2)?, list.value(3)?, list.value(4)?];
    Ok(Op::Four { f, to: list.to(0)?, operands })
}

fn floats(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    if code.name == "testp" {
        let classes = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
        let class = code.one(&classes.map(|name| (name, name)))?;
        let Some(f) = float::test(class, code.ty()?) else { return code.unknown() };
        return Ok(Op::One { f, to: list.to(0)?, a: list.value(1)? });
    }
    let roots = ["rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh", "sin", "cos"];
    let approximate = (code.name == "div" || roots.contains(&code.name)) && code.has("approx")
        || (code.name == "div" && code.has("full"));
    let form = code.form()?;
    let keeps = matches!(code.name, "min" | "max") && code.has("NaN");
    let ty = code.ty()?;
    let short = ty.kind == Kind::Halves || ty.bits == 16;
    if ty.kind == Kind::Tf32 {
        return code.unknown();
    }
    match code.name {
        "fma" | "mad" => {
            if (ty.kind, ty.bits, form.round, form.ftz, form.sat)
                == (Kind::Float, 32, Round::Nearest, false, false)
            {
                let (to, a) = (list.to(0)?, list.value(1)?);
                return Ok(Op::Fma { to, a, b: list.value(2)?, c: list.value(3)? });
            }
            let f = if short { half::three(ty, form) } else { float::three(ty, form) };
            f.map_or_else(|| code.unknown(), |f| three(f, list))
        }
        "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => {
            let name = if keeps { format!("{}.NaN", code.name) } else { code.name.to_owned() };
            let f = if short { half::two(&name, ty, form) } else { float::two(&name, ty, form) };
            f.map_or_else(|| code.unknown(), |f| two(f, list))
        }
        name => {
            // Only to nearest; the approximate functions exist in no other form.
            let exact = matches!(name, "rcp" | "sqrt" | "neg" | "abs");
            if form.round != Round::Nearest || form.sat || !(approximate || exact || short) {
                return code.unknown();
            }
            let f = if short { half::one(name, ty) } else { float::one(name, ty, form.ftz) };
            let Some(f) = f else { return code.unknown() };
            Ok(Op::One { f, to: list.to(0)?, a: list.value(1)? })
        }
    }
}

fn compare(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    if code.name == "set" {
        return code.unknown();
    }
    let comparison = code.one(&Comparison::NAMES)?;
    let combine: [(&str, Two); 3] =
        [("and", |a, b| a & b), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)];
    let combine = code.any(&combine);
    let ftz = code.has("ftz");
    let ty = code.ty()?;
    let f = match (ty.kind, ty.bits) {
        (Kind::Float, 16) => Some(half::compare(comparison)),
        (Kind::Float, _) => float::compare(comparison, ty, ftz),
        _ => integer::compare(comparison, ty),
    };
    let Some(f) = f else { return code.unknown() };
    // One destination or two, then the two operands, then what the result is combined with.
    let first = match list.list.len().checked_sub(usize::from(combine.is_some())) {
        Some(3) => 1,
        Some(4) => 2,
        _ => return code.unknown(),
    };
    let (to, a, b) = (list.to(0)?, list.value(first)?, list.value(first + 1)?);
    if first == 1 && combine.is_none() {
        return Ok(Op::Two { f, to, a, b });
    }
    let with = match combine {
        Some(combine) => {
            let (p, inverted) = list.predicate(first + 2)?;
            Some((combine, p, inverted))
        }
        None => None,
    };
    let inverse = if first == 2 { list.to(1)? } else { NOWHERE };
    Ok(Op::Compare(Box::new(Compare { f, to, inverse, a, b, with })))
}

fn moves(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    match code.name {
        "cvta" => {
            let back = code.has("to");
            let base = match code.space() {
                Space::Shared => SHARED,
                Space::Local => LOCAL,
                Space::Param => PARAM,
                _ => 0,
            };
            code.ty()?;
            let base = if back { base.wrapping_neg() } else { base };
            let b = list.scope.constant(base);
            Ok(Op::Two { f: |a, b| a.wrapping_add(b), to: list.to(0)?, a: list.value(1)?, b })
        }
        "isspacep" => {
            let window = match code.space() {
                Space::Shared => SHARED,
                Space::Local => LOCAL,
                Space::Param => PARAM,
                Space::Global => 0,
                Space::Generic => return code.unknown(),
            };
            let b = list.scope.constant(window);
            let f: Two = |a, b| (a & WINDOW == b).into();
            Ok(Op::Two { f, to: list.to(0)?, a: list.value(1)?, b })
        }
        "mov" => {
            let ty = code.ty()?;
            if matches!(list.get(1)?, Operand::Word("%clock" | "%clock64" | "%globaltimer")) {
                return Ok(Op::Clock { to: list.to(0)? });
            }
            if matches!(list.get(0)?, Operand::List(_)) {
                let (to, count) = list.several(0, true)?;
                return Ok(Op::Unpack {
                    bits: ty.bits / u32::from(count),
                    to,
                    count,
                    a: list.value(1)?,
                });
            }
            if matches!(list.get(1)?, Operand::List(_)) {
                let (from, count) = list.several(1, false)?;
                return Ok(Op::Pack {
                    bits: ty.bits / u32::from(count),
                    to: list.to(0)?,
                    count,
                    from,
                });
            }
            Ok(Op::One { f: |a| a, to: list.to(0)?, a: list.value(1)? })
        }
        _ => conversion(code, list),
    }
}

fn conversion(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    let (round, integral) = code.round().unwrap_or((Round::Nearest, false));
    let (sat, ftz) = (code.has("sat"), code.has("ftz"));
    let (into, from) = (code.ty()?, code.ty()?);
    if into.kind == Kind::Halves {
        // The first operand is the upper half.
        let f: Two = |a, b| {
            let narrow = |bits: u64| half::give(f64::from(f32::from_bits(bits as u32)));
            narrow(a) << 16 | narrow(b)
        };
        let known = from == Ty { kind: Kind::Float, bits: 32 } && round == Round::Nearest;
        return if known && !sat { two(f, list) } else { code.unknown() };
    }
    if !into.is_float() && !from.is_float() {
        let Some(f) = convert::integers(into, from, sat) else { return code.unknown() };
        return Ok(Op::One { f, to: list.to(0)?, a: list.value(1)? });
    }
    let convert = Convert { into, from, round, integral, sat, ftz };
    if !convert.is_known() {
        return code.unknown();
    }
    Ok(Op::Convert { convert: Box::new(convert), to: list.to(0)?, a: list.value(1)? })
}

fn memory(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>) -> Result<(Class, Op)> {
    if code.name == "cp" {
        return Ok((Class::Copy, copy(code, list)?));
    }
    let strong = code
        .suffixes
        .iter()
        .any(|s| matches!(*s, "volatile" | "relaxed" | "acquire" | "release" | "acq_rel" | "sc"));
    code.has("volatile");
    code.has("relaxed");
    let cached = code.name == "ld" && code.has("nc");
    code.has("weak");
    code.ignore_caches();
    let space = code.space();
    if code.name == "ldmatrix" {
        code.has("sync");
        code.has("aligned");
        let count = code.one(&[("x1", 1), ("x2", 2), ("x4", 4)])?;
        let (transposed, shape) = (code.has("trans"), code.has("m8n8"));
        let (to, found) = list.several(0, true)?;
        if !shape || found != count || code.ty()?.bits != 16 || space != Space::Shared {
            return code.unknown();
        }
        let op = Op::LoadMatrix { transposed, count, to, from: list.address(1)? };
        return Ok((Class::SharedLoad, op));
    }
    if matches!(code.name, "atom" | "red") {
        return Ok((Class::Atomic, atomic(code, list, space)?));
    }
    let vector = code.any(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
    let ty = code.ty()?;
    let load = code.name != "st";
    let class = match (space, load) {
        (Space::Global, true) => Class::GlobalLoad,
        (Space::Global, false) => Class::GlobalStore,
        (Space::Shared, true) => Class::SharedLoad,
        (Space::Shared, false) => Class::SharedStore,
        _ => Class::OtherMemory,
    };
    let signed = ty.kind == Kind::Signed;
    let bits = ty.bits as u8;
    let access = Access { space, bits, count: vector, strong, cached, signed };
    let (slots, count) = list.several(if load { 0 } else { 1 }, load)?;
    if count != vector || access.bytes() > 16 || ty.bits < 8 {
        return code.unknown();
    }
    let address = list.address(if load { 1 } else { 0 })?;
    let op = if load {
        Op::Load { access, to: slots, from: address }
    } else {
        Op::Store { access, to: address, from: slots }
    };
    Ok((class, op))
}

fn atomic(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>, space: Space) -> Result<Op> {
    let names = ["add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec"];
    let name = code.one(&names.map(|name| (name, name)))?;
    let ty = code.ty()?;
    let Some(f) = integer::atomic(name, ty) else { return code.unknown() };
    let first = usize::from(code.name == "atom");
    let access =
        Access { space, bits: ty.bits as u8, count: 1, strong: true, cached: false, signed: false };
    let b = if name == "cas" { list.value(first + 2)? } else { list.scope.constant(0) };
    let to = if first == 1 { list.to(0)? } else { NOWHERE };
    Ok(Op::Atomic { f, access, to, at: list.address(first)?, a: list.value(first + 1)?, b })
}

fn copy(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    if !code.has("async") {
        return code.unknown();
    }
    if code.has("commit_group") {
        return Ok(Op::CopyCommit);
    }
    if code.has("wait_group") {
        return Ok(Op::CopyWait(list.number(0)?));
    }
    if code.has("wait_all") {
        return Ok(Op::CopyWaitAll);
    }
    let around = code.has("cg");
    code.ignore_caches();
    let spaces = (code.has("shared") || code.has("shared::cta")) && code.has("global");
    let bytes = list.number(2)?;
    if !spaces || !(bytes == 16 || (!around && matches!(bytes, 4 | 8))) {
        return code.unknown();
    }
    let read = if list.list.len() > 3 { Some(list.value(3)?) } else { None };
    Ok(Op::Copy { to: list.address(0)?, from: list.address(1)?, bytes, read })
}

fn control(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    match code.name {
        "bra" => {
            code.has("uni");
            match list.get(0)? {
                Operand::Word(label) => Ok(Op::Branch(list.scope.target(label)?)),
                _ => code.unknown(),
            }
        }
        "brx" => {
            code.has("uni");
            if !code.has("idx") {
                return code.unknown();
            }
            match list.get(1)? {
                Operand::Word(table) => {
                    let targets = list.scope.targets(table)?;
                    Ok(Op::Switch { index: list.value(0)?, targets })
                }
                _ => code.unknown(),
            }
        }
        "trap" => Ok(Op::Trap),
        _ => {
            code.has("uni");
            Ok(Op::Exit)
        }
    }
}

fn barrier(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    if !matches!(code.name, "bar" | "barrier") {
        // Memory is consistent here at any time.
        code.suffixes.clear();
        return Ok(Op::Nothing);
    }
    if code.has("warp") {
        return if code.has("sync") {
            Ok(Op::WarpBarrier { mask: list.value(0)? })
        } else {
            code.unknown()
        };
    }
    code.has("cta");
    code.has("aligned");
    let reduces = code.has("red");
    if reduces {
        let kind =
            code.one(&[("popc", Barrier::Count), ("and", Barrier::All), ("or", Barrier::Any)])?;
        code.ty()?;
        let Some(last @ 2..=3) = list.list.len().checked_sub(1) else {
            return code.unknown();
        };
        let (a, inverted) = list.predicate(last)?;
        let count = if last == 3 { Some(list.value(2)?) } else { None };
        return Ok(Op::Barrier { kind, id: list.value(1)?, count, to: list.to(0)?, a, inverted });
    }
    let kind = code.one(&[("sync", Barrier::Sync), ("arrive", Barrier::Arrive)])?;
    let count = if list.list.len() > 1 { Some(list.value(1)?) } else { None };
    if kind == Barrier::Arrive && count.is_none() {
        return code.unknown();
    }
    let id = list.value(0)?;
    Ok(Op::Barrier { kind, id, count, to: NOWHERE, a: NOWHERE, inverted: false })
}

fn warp(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    if code.name == "activemask" {
        code.ty()?;
        return Ok(Op::ActiveMask { to: list.to(0)? });
    }
    if !code.has("sync") {
        return code.unknown();
    }
    match code.name {
        "shfl" => {
            let mode = code.one(&[
                ("up", Shuffle::Up),
                ("down", Shuffle::Down),
                ("bfly", Shuffle::Butterfly),
                ("idx", Shuffle::Index),
            ])?;
            code.ty()?;
            let Some(first @ 1..=2) = list.list.len().checked_sub(4) else {
                return code.unknown();
            };
            Ok(Op::Shuffle {
                mode,
                to: list.to(0)?,
                within: if first == 2 { list.to(1)? } else { NOWHERE },
                a: list.value(first)?,
                lane: list.value(first + 1)?,
                clamp: list.value(first + 2)?,
                mask: list.value(first + 3)?,
            })
        }
        "vote" => {
            let kind = code.one(&[
                ("ballot", Vote::Ballot),
                ("any", Vote::Any),
                ("all", Vote::All),
                ("uni", Vote::Uniform),
            ])?;
            code.ty()?;
            let (a, inverted) = list.predicate(1)?;
            Ok(Op::Vote { kind, to: list.to(0)?, a, inverted, mask: list.value(2)? })
        }
        "match" => {
            let all = code.one(&[("any", false), ("all", true)])?;
            let bits = code.ty()?.bits;
            let Some(first @ 1..=2) = list.list.len().checked_sub(2) else {
                return code.unknown();
            };
            let same = if first == 2 { list.to(1)? } else { NOWHERE };
            let (a, mask) = (list.value(first)?, list.value(first + 1)?);
            Ok(Op::Match { bits, all, to: list.to(0)?, same, a, mask })
        }
        _ => {
            let names = ["add", "min", "max", "and", "or", "xor"];
            let name = code.one(&names.map(|name| (name, name)))?;
            let ty = code.ty()?;
            let Some(f) = integer::two(name, ty) else { return code.unknown() };
            Ok(Op::Redux { f, to: list.to(0)?, a: list.value(1)?, mask: list.value(2)? })
        }
    }
}

fn mma(code: &mut Opcode<'_>, list: &mut Operands<'_, '_, '_>) -> Result<Op> {
    let shapes = [
        ("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32", Mma::Tf32K4),
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", Mma::Tf32K8),
        ("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", Mma::F16K8),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", Mma::F16K16),
    ];
    let found = shapes.iter().find(|(full, _)| *full == code.full);
    let Some(&(_, shape)) = found else { return code.unknown() };
    code.suffixes.clear();
    let (a, left) = list.several(1, false)?;
    let (b, right) = list.several(2, false)?;
    let wanted = match shape {
        Mma::Tf32K4 | Mma::F16K8 => (2, 1),
        Mma::Tf32K8 | Mma::F16K16 => (4, 2),
    };
    if (left, right) != wanted {
        return error(format!("{left} and {right} registers, not {} and {}", wanted.0, wanted.1));
    }
    let (to, c) = (list.exactly(0, true)?, list.exactly(3, false)?);
    Ok(Op::Multiply(Box::new(Multiply { shape, to, a, b, c })))
}

/// Gives every operand its place in the frame, once all registers are known.
pub(super) fn place(code: &mut [Instruction], scope: &Scope<'_>) {
    let at = |slot: &mut Slot| *slot = scope.place(*slot);
    for Instruction { guard, op, .. } in code {
        guard.iter_mut().for_each(|(p, _)| at(p));
        match op {
            Op::One { to, a, .. } | Op::Convert { to, a, .. } => [to, a].into_iter().for_each(at),
            Op::Two { to, a, b, .. } => [to, a, b].into_iter().for_each(at),
            Op::Fma { to, a, b, c } | Op::Three { to, a, b, c, .. } => {
                [to, a, b, c].into_iter().for_each(at);
            }
            Op::Four { to, operands, .. } => {
                at(to);
                operands.iter_mut().for_each(at);
            }
            Op::Compare(compare) => {
                let Compare { to, inverse, a, b, with, .. } = &mut **compare;
                [to, inverse, a, b].into_iter().for_each(at);
                with.iter_mut().for_each(|(_, p, _)| at(p));
            }
            Op::Pack { to, from, .. } => {
                at(to);
                from.iter_mut().for_each(at);
            }
            Op::Unpack { to, a, .. } => {
                at(a);
                to.iter_mut().for_each(at);
            }
            Op::Clock { to } | Op::ActiveMask { to } => at(to),
            Op::Load { to, from, .. } | Op::LoadMatrix { to, from, .. } => {
                at(&mut from.base);
                to.iter_mut().for_each(at);
            }
            Op::Store { to, from, .. } => {
                at(&mut to.base);
                from.iter_mut().for_each(at);
            }
            Op::Atomic { to, at: address, a, b, .. } => {
                [to, &mut address.base, a, b].into_iter().for_each(at);
            }
            Op::Copy { to, from, read, .. } => {
                [&mut to.base, &mut from.base].into_iter().chain(read).for_each(at);
            }
            Op::Switch { index, .. } => at(index),
            Op::Barrier { id, count, to, a, .. } => {
                [id, to, a].into_iter().chain(count).for_each(at);
            }
            Op::WarpBarrier { mask } => at(mask),
            Op::Shuffle { to, within, a, lane, clamp, mask, .. } => {
                [to, within, a, lane, clamp, mask].into_iter().for_each(at);
            }
            Op::Vote { to, a, mask, .. } | Op::Redux { to, a, mask, .. } => {
                [to, a, mask].into_iter().for_each(at);
            }
            Op::Match { to, same, a, mask, .. } => [to, same, a, mask].into_iter().for_each(at),
            Op::Multiply(multiply) => {
                let Multiply { to, a, b, c, .. } = &mut **multiply;
                to.iter_mut().chain(a).chain(b).chain(c).for_each(at);
            }
            Op::CopyCommit
            | Op::CopyWait(_)
            | Op::CopyWaitAll
            | Op::Branch(_)
            | Op::Exit
            | Op::Trap
            | Op::Nothing => {}
        }
    }
}
