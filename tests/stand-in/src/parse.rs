//! From PTX to decoded instructions: names, types and spaces are resolved once, here.

use std::collections::HashMap;

use crate::code::*;

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

impl Module {
    /// Decodes a module. `place` gives a device address for each initialised array of the module.
    ///
    /// # Errors
    /// Whatever is not understood, by its full name.
    pub fn parse(source: &str, place: &mut dyn FnMut(&[u8]) -> u64) -> Result<Self> {
        let text = without_comments(source)?;
        let mut module = Self { version: (0, 0), target: 0, kernels: Vec::new() };
        let mut symbols = Symbols::default();
        let mut rest = text.as_str();
        while let Some(at) = rest.find(|c: char| !c.is_whitespace()) {
            rest = &rest[at..];
            if !is_line_directive(rest) && is_entry(rest) {
                let open = find(rest, '{')?;
                let close = open + closing(&rest[open..])?;
                module.kernels.push(kernel(&rest[..open], &rest[open + 1..close], &symbols)?);
                rest = &rest[close + 1..];
                continue;
            }
            let line = rest.find('\n').unwrap_or(rest.len());
            let end = match rest.find(';') {
                Some(end) if !is_line_directive(rest) => end + 1,
                _ => line,
            };
            directive(rest[..end].trim_end_matches(';').trim(), &mut module, &mut symbols, place)?;
            rest = &rest[end..];
        }
        Ok(module)
    }
}

fn is_line_directive(text: &str) -> bool {
    [".version", ".target", ".address_size"].iter().any(|d| text.starts_with(d))
}

fn is_entry(text: &str) -> bool {
    let head = &text[..text.find(['{', ';']).unwrap_or(text.len())];
    head.contains(".entry")
}

fn find(text: &str, c: char) -> Result<usize> {
    text.find(c).map_or_else(|| error(format!("expected {c}")), Ok)
}

/// Where the brace that opens `text` is closed.
fn closing(text: &str) -> Result<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Ok(at);
                }
            }
            _ => {}
        }
    }
    error("a brace is not closed")
}

fn without_comments(source: &str) -> Result<String> {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    loop {
        let (line, block) = (rest.find("//"), rest.find("/*"));
        match (line, block) {
            (Some(a), b) if b.is_none_or(|b| a < b) => {
                text.push_str(&rest[..a]);
                let end = rest[a..].find('\n').map_or(rest.len(), |n| a + n);
                rest = &rest[end..];
            }
            (_, Some(b)) => {
                text.push_str(&rest[..b]);
                text.push(' ');
                let Some(n) = rest[b..].find("*/") else { return error("a comment is not closed") };
                rest = &rest[b + n + 2..];
            }
            _ => {
                text.push_str(rest);
                return Ok(text);
            }
        }
    }
}

#[derive(Clone, Default)]
struct Symbols {
    /// Device addresses of arrays of the module.
    global: HashMap<String, u64>,
    /// Offsets in the block's shared memory.
    shared: HashMap<String, u64>,
    shared_bytes: u64,
    /// Arrays whose size the launch gives.
    dynamic: Vec<String>,
}

fn directive(
    text: &str,
    module: &mut Module,
    symbols: &mut Symbols,
    place: &mut dyn FnMut(&[u8]) -> u64,
) -> Result<()> {
    if let Some(version) = text.strip_prefix(".version") {
        let (major, minor) = version.trim().split_once('.').unwrap_or((version, "0"));
        module.version = (number(major.trim())? as u32, number(minor.trim())? as u32);
    } else if let Some(target) = text.strip_prefix(".target") {
        let digits: String = target.chars().filter(char::is_ascii_digit).collect();
        module.target = number(&digits)? as u32;
    } else if text.starts_with(".address_size") || text.is_empty() {
    } else if text.contains(".shared") {
        let declared = Declared::parse(text)?;
        if text.starts_with(".extern") {
            symbols.dynamic.push(declared.name);
        } else {
            symbols.shared_bytes = symbols.shared_bytes.next_multiple_of(declared.align);
            symbols.shared.insert(declared.name, symbols.shared_bytes);
            symbols.shared_bytes += declared.bytes;
        }
    } else if text.contains(".global") || text.contains(".const") {
        let (head, values) = text.split_once('=').unwrap_or((text, ""));
        let declared = Declared::parse(head.trim())?;
        let mut bytes = Vec::new();
        for value in values.trim().trim_matches(['{', '}']).split(',') {
            let value = value.trim();
            if !value.is_empty() {
                let value = immediate(value).unwrap_or(0);
                bytes.extend_from_slice(&value.to_le_bytes()[..declared.size as usize]);
            }
        }
        bytes.resize(declared.bytes.max(1) as usize, 0);
        symbols.global.insert(declared.name, place(&bytes));
    } else {
        return error(format!("directive {text}"));
    }
    Ok(())
}

/// A variable: `.shared .align 16 .b8 name[128]`.
struct Declared {
    name: String,
    align: u64,
    /// Bytes of an element.
    size: u64,
    bytes: u64,
}

impl Declared {
    fn parse(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (mut align, mut size) = (1, 1);
        for (at, word) in words.iter().enumerate() {
            if *word == ".align" {
                align = number(words.get(at + 1).unwrap_or(&""))?;
            } else if let Some(ty) = word.strip_prefix('.').and_then(Ty::parse) {
                size = u64::from(ty.bits / 8).max(1);
            }
        }
        let last = words.last().copied().unwrap_or_default();
        let (name, length) = last.split_once('[').unwrap_or((last, "1]"));
        let length = length.trim_end_matches(']').split("][").map(|n| number(n).unwrap_or(0));
        Ok(Self {
            name: name.into(),
            align: align.max(size),
            size,
            bytes: size * length.product::<u64>(),
        })
    }
}

fn number(text: &str) -> Result<u64> {
    immediate(text).map_or_else(|| error(format!("expected a number, found {text:?}")), Ok)
}

/// An integer in decimal or hexadecimal, or a float by its bits.
fn immediate(text: &str) -> Option<u64> {
    if let Some(bits) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
        return u64::from_str_radix(bits, 16).ok();
    }
    if let Some(bits) = text.strip_prefix("0d").or_else(|| text.strip_prefix("0D")) {
        return u64::from_str_radix(bits, 16).ok();
    }
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let digits = digits.trim_end_matches('U');
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if negative { value.wrapping_neg() } else { value })
}

/// What names mean within a kernel.
struct Scope<'a> {
    registers: HashMap<String, u32>,
    labels: HashMap<String, u32>,
    params: &'a [Param],
    symbols: Symbols,
    local: HashMap<String, u64>,
    local_bytes: u64,
}

fn kernel(head: &str, body: &str, symbols: &Symbols) -> Result<Kernel> {
    let at = head.find(".entry").unwrap_or(0) + ".entry".len();
    let head = &head[at..];
    let (name, rest) = head.split_once('(').map_or_else(|| error("a kernel without ()"), Ok)?;
    let (list, bounds) = rest.rsplit_once(')').map_or_else(|| error("a kernel without )"), Ok)?;
    let mut params: Vec<Param> = Vec::new();
    let mut end = 0u64;
    for text in list.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        let declared = Declared::parse(text)?;
        let at = end.next_multiple_of(declared.align);
        end = at + declared.bytes;
        params.push(Param { name: declared.name, at: at as u32, bytes: declared.bytes as u32 });
    }
    let threads = bounds.split_once(".maxntid").map(|(_, n)| n.trim());
    let threads = threads.map(|n| n.split([',', '.', ' ', '\n']).next().unwrap_or_default());
    let threads = threads.map(number).transpose()?.map(|n| n as u32);

    let mut scope = Scope {
        registers: HashMap::new(),
        labels: HashMap::new(),
        params: &params,
        symbols: symbols.clone(),
        local: HashMap::new(),
        local_bytes: 0,
    };
    // Statements first: labels must be known before what jumps to them is decoded.
    let mut statements: Vec<String> = Vec::new();
    for chunk in split_statements(body) {
        let mut text = chunk.trim();
        loop {
            text = text.trim_start_matches(['}', ' ', '\n', '\t', '\r']);
            // A brace that opens a statement is a scope; one within holds operands.
            if let Some(rest) = text.strip_prefix('{') {
                text = rest.trim_start();
                continue;
            }
            let Some((label, rest)) = text.split_once(':') else { break };
            let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
            if label.is_empty() || !label.chars().all(is_name) {
                break;
            }
            scope.labels.insert(label.into(), statements.len() as u32);
            text = rest.trim_start();
        }
        if text.is_empty() || text.starts_with(".reg") || text.starts_with(".pragma") {
            continue;
        }
        if text.starts_with(".shared") {
            let declared = Declared::parse(text)?;
            let at = scope.symbols.shared_bytes.next_multiple_of(declared.align);
            scope.symbols.shared.insert(declared.name, at);
            scope.symbols.shared_bytes = at + declared.bytes;
        } else if text.starts_with(".local") {
            let declared = Declared::parse(text)?;
            let at = scope.local_bytes.next_multiple_of(declared.align);
            scope.local.insert(declared.name, at);
            scope.local_bytes = at + declared.bytes;
        } else {
            statements.push(text.into());
        }
    }
    let dynamic_at = scope.symbols.shared_bytes.next_multiple_of(16);
    for name in scope.symbols.dynamic.clone() {
        scope.symbols.shared.insert(name, dynamic_at);
    }
    let mut code = Vec::with_capacity(statements.len());
    for statement in &statements {
        let instruction = instruction(statement, &mut scope);
        code.push(instruction.map_err(|e| ParseError(format!("{statement}: {e}")))?);
    }
    let texts = statements;
    Ok(Kernel {
        name: name.trim().into(),
        param_bytes: end as u32,
        registers: scope.registers.len() as u32,
        local: scope.local_bytes as u32,
        shared: dynamic_at as u32,
        threads,
        code,
        texts,
        params,
    })
}

/// Splits at the semicolons that are not within an operand's braces.
fn split_statements(body: &str) -> impl Iterator<Item = &str> {
    body.split(';')
}

/// Splits operands at commas outside of braces and brackets.
fn operands(text: &str) -> Vec<String> {
    let (mut list, mut depth, mut one) = (Vec::new(), 0, String::new());
    for c in text.chars() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 && (c == ',' || c == '|') {
            list.push(std::mem::take(&mut one).trim().to_owned());
        } else {
            one.push(c);
        }
    }
    if !one.trim().is_empty() {
        list.push(one.trim().to_owned());
    }
    list
}

impl Scope<'_> {
    fn register(&mut self, name: &str) -> u32 {
        let next = self.registers.len() as u32;
        *self.registers.entry(name.into()).or_insert(next)
    }

    /// A register to write; none for `_`.
    fn target(&mut self, text: &str) -> u32 {
        if text == "_" { NOWHERE } else { self.register(text) }
    }

    fn value(&mut self, text: &str) -> Result<Value> {
        let text = text.trim();
        if let Some(inner) = text.strip_prefix('!') {
            return Ok(Value::Not(self.register(inner)));
        }
        if let Some(special) = Special::parse(text) {
            return Ok(Value::Special(special));
        }
        if text.starts_with('%') {
            return Ok(Value::Register(self.register(text)));
        }
        if let Some(value) = immediate(text) {
            return Ok(Value::Immediate(value));
        }
        if let Some(&at) = self.symbols.shared.get(text).or_else(|| self.local.get(text)) {
            return Ok(Value::Immediate(at));
        }
        if let Some(&address) = self.symbols.global.get(text) {
            return Ok(Value::Immediate(address));
        }
        if text.chars().all(|c| c.is_alphanumeric() || c == '_') && !text.is_empty() {
            // Names that inline assembly gives its registers.
            return Ok(Value::Register(self.register(text)));
        }
        error(format!("operand {text}"))
    }

    fn list(&mut self, text: &str) -> Result<Vec<Value>> {
        let inner = text.trim().trim_start_matches('{').trim_end_matches('}');
        inner.split(',').map(|one| self.value(one)).collect()
    }

    fn targets(&mut self, text: &str) -> Vec<u32> {
        let inner = text.trim().trim_start_matches('{').trim_end_matches('}');
        inner.split(',').map(|one| self.target(one.trim())).collect()
    }

    fn address(&mut self, text: &str, space: &mut Space) -> Result<Address> {
        let inner = text.trim().trim_start_matches('[').trim_end_matches(']').trim();
        let (base, offset) = match inner.find(['+', '-']) {
            Some(at) if at > 0 => {
                let offset = inner[at..].trim_start_matches('+').trim();
                (inner[..at].trim(), number(offset)? as i64)
            }
            _ => (inner, 0),
        };
        if *space == Space::Param {
            let param = self.params.iter().find(|p| p.name == base);
            let Some(param) = param else { return error(format!("parameter {base}")) };
            let at = i64::from(param.at) + offset;
            return Ok(Address { base: Value::Immediate(0), offset: at });
        }
        Ok(Address { base: self.value(base)?, offset })
    }
}

fn space(parts: &[&str]) -> Space {
    for part in parts {
        match *part {
            "global" | "const" => return Space::Global,
            "shared" | "shared::cta" => return Space::Shared,
            "local" => return Space::Local,
            "param" => return Space::Param,
            _ => {}
        }
    }
    Space::Generic
}

fn instruction(text: &str, scope: &mut Scope<'_>) -> Result<Instruction> {
    let mut text = text.trim();
    let mut guard = None;
    if let Some(rest) = text.strip_prefix('@') {
        let at = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (name, negated) = match rest[..at].strip_prefix('!') {
            Some(name) => (name, true),
            None => (&rest[..at], false),
        };
        guard = Some((scope.register(name), !negated));
        text = rest[at..].trim();
    }
    let at = text.find(char::is_whitespace).unwrap_or(text.len());
    let (full, list) = (&text[..at], operands(&text[at..]));
    let parts: Vec<&str> = full.split('.').collect();
    let op = decode(full, &parts, &list, scope)?;
    Ok(Instruction { guard, op })
}

fn decode(full: &str, parts: &[&str], list: &[String], scope: &mut Scope<'_>) -> Result<Op> {
    let unknown = || ParseError(format!("instruction {full} is not known"));
    let has = |name: &str| parts[1..].contains(&name);
    let types: Vec<Ty> = parts[1..].iter().filter_map(|p| Ty::parse(p)).collect();
    let ty = types.last().copied();
    let need = || ty.ok_or_else(unknown);
    let arg = |n: usize| list.get(n).map(String::as_str).ok_or_else(unknown);
    let ftz = has("ftz");
    macro_rules! binary {
        ($op:expr) => {
            Op::Binary {
                op: $op,
                ty: need()?,
                ftz,
                to: scope.target(arg(0)?),
                a: scope.value(arg(1)?)?,
                b: scope.value(arg(2)?)?,
            }
        };
    }
    macro_rules! unary {
        ($op:expr) => {
            Op::Unary {
                op: $op,
                ty: need()?,
                ftz,
                to: scope.target(arg(0)?),
                a: scope.value(arg(1)?)?,
            }
        };
    }
    macro_rules! ternary {
        ($op:expr) => {
            Op::Ternary {
                op: $op,
                ty: need()?,
                ftz,
                to: scope.target(arg(0)?),
                a: scope.value(arg(1)?)?,
                b: scope.value(arg(2)?)?,
                c: scope.value(arg(3)?)?,
            }
        };
    }
    Ok(match parts[0] {
        "add" => binary!(Binary::Add),
        "sub" => binary!(Binary::Sub),
        "mul" if has("hi") => binary!(Binary::MulHi),
        "mul" if has("wide") => binary!(Binary::MulWide),
        "mul" => binary!(Binary::Mul),
        "mul24" => binary!(Binary::Mul),
        "div" => binary!(Binary::Div),
        "rem" => binary!(Binary::Rem),
        "min" => binary!(if has("NaN") { Binary::MinNan } else { Binary::Min }),
        "max" => binary!(if has("NaN") { Binary::MaxNan } else { Binary::Max }),
        "and" => binary!(Binary::And),
        "or" => binary!(Binary::Or),
        "xor" => binary!(Binary::Xor),
        "shl" => binary!(Binary::Shl),
        "shr" => binary!(Binary::Shr),
        "copysign" => binary!(Binary::Copysign),
        "neg" => unary!(Unary::Neg),
        "abs" => unary!(Unary::Abs),
        "not" => unary!(Unary::Not),
        "cnot" => unary!(Unary::Cnot),
        "popc" => unary!(Unary::Popc),
        "clz" => unary!(Unary::Clz),
        "brev" => unary!(Unary::Brev),
        "bfind" => unary!(Unary::Bfind),
        "rcp" => unary!(Unary::Rcp),
        "sqrt" => unary!(Unary::Sqrt),
        "rsqrt" => unary!(Unary::Rsqrt),
        "ex2" => unary!(Unary::Ex2),
        "lg2" => unary!(Unary::Lg2),
        "tanh" => unary!(Unary::Tanh),
        "sin" => unary!(Unary::Sin),
        "cos" => unary!(Unary::Cos),
        "mad" if has("hi") => ternary!(Ternary::MadHi),
        "mad" if has("wide") => ternary!(Ternary::MadWide),
        "mad" if need()?.kind != Kind::Float => ternary!(Ternary::Mad),
        "mad" | "fma" => ternary!(Ternary::Fma),
        "bfe" => ternary!(Ternary::Bfe),
        "prmt" => ternary!(Ternary::Prmt),
        "shf" if has("l") => {
            ternary!(if has("wrap") { Ternary::ShfLeftWrap } else { Ternary::ShfLeftClamp })
        }
        "shf" => ternary!(if has("wrap") { Ternary::ShfRightWrap } else { Ternary::ShfRightClamp }),
        "bfi" => Op::Bfi {
            ty: need()?,
            to: scope.target(arg(0)?),
            from: scope.value(arg(1)?)?,
            into: scope.value(arg(2)?)?,
            at: scope.value(arg(3)?)?,
            len: scope.value(arg(4)?)?,
        },
        "lop3" => Op::Lop3 {
            to: scope.target(arg(0)?),
            a: scope.value(arg(1)?)?,
            b: scope.value(arg(2)?)?,
            c: scope.value(arg(3)?)?,
            table: number(arg(4)?)? as u8,
        },
        "selp" => Op::Select {
            to: scope.target(arg(0)?),
            a: scope.value(arg(1)?)?,
            b: scope.value(arg(2)?)?,
            p: scope.value(arg(3)?)?,
        },
        "setp" => {
            let compare = Compare::parse(parts[1]).ok_or_else(unknown)?;
            let with = ["and", "or", "xor"].iter().position(|name| has(name));
            // One target or two, then a and b, then what the result is combined with.
            let extra = usize::from(with.is_some());
            let two = list.len() - 2 - extra == 2;
            let from = if two { 2 } else { 1 };
            Op::Compare {
                compare,
                ty: need()?,
                to: scope.target(arg(0)?),
                inverse: if two { scope.target(arg(1)?) } else { NOWHERE },
                a: scope.value(arg(from)?)?,
                b: scope.value(arg(from + 1)?)?,
                with: match with {
                    Some(kind) => {
                        let kind = [Binary::And, Binary::Or, Binary::Xor][kind];
                        Some((kind, scope.value(arg(from + 2)?)?))
                    }
                    None => None,
                },
            }
        }
        "testp" => Op::Test {
            finite: has("finite"),
            infinite: has("infinite"),
            nan: has("notanumber"),
            to: scope.target(arg(0)?),
            a: scope.value(arg(1)?)?,
        },
        "mov" if list.first().is_some_and(|t| t.starts_with('{')) => Op::Unpack {
            bits: need()?.bits / scope.list(arg(0)?)?.len() as u32,
            to: scope.targets(arg(0)?),
            a: scope.value(arg(1)?)?,
        },
        "mov" if list.get(1).is_some_and(|t| t.starts_with('{')) => {
            let from = scope.list(arg(1)?)?;
            Op::Pack { bits: need()?.bits / from.len() as u32, to: scope.target(arg(0)?), from }
        }
        "mov" => unary!(Unary::Move),
        "cvta" => Op::Cvta {
            space: space(&parts[1..]),
            to_space: has("to"),
            to: scope.target(arg(0)?),
            a: scope.value(arg(1)?)?,
        },
        "cvt" => {
            let [into, from] = types[..] else { return Err(unknown()) };
            let round = ["rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna"];
            let round = round.iter().find(|r| has(r)).copied().unwrap_or("");
            Op::Convert {
                into,
                from,
                round: match round {
                    "rz" | "rzi" => Round::Zero,
                    "rm" | "rmi" => Round::Down,
                    "rp" | "rpi" => Round::Up,
                    "rna" => Round::Away,
                    _ => Round::Nearest,
                },
                integral: round.ends_with('i'),
                saturate: has("sat"),
                to: scope.target(arg(0)?),
                a: scope.value(arg(1)?)?,
            }
        }
        "ld" | "ldu" => {
            let mut space = space(&parts[1..]);
            Op::Load {
                ty: need()?,
                to: scope.targets(arg(0)?),
                from: scope.address(arg(1)?, &mut space)?,
                space,
            }
        }
        "st" => {
            let mut space = space(&parts[1..]);
            Op::Store {
                ty: need()?,
                to: scope.address(arg(0)?, &mut space)?,
                from: scope.list(arg(1)?)?,
                space,
            }
        }
        "atom" | "red" => {
            let mut space = space(&parts[1..]);
            let kinds = [
                ("add", Atomic::Add),
                ("min", Atomic::Min),
                ("max", Atomic::Max),
                ("exch", Atomic::Exchange),
                ("cas", Atomic::Swap),
                ("and", Atomic::And),
                ("or", Atomic::Or),
                ("xor", Atomic::Xor),
                ("inc", Atomic::Inc),
                ("dec", Atomic::Dec),
            ];
            let op = kinds.into_iter().find(|(name, _)| has(name)).ok_or_else(unknown)?.1;
            let first = usize::from(parts[0] == "atom");
            Op::Atomic {
                op,
                ty: need()?,
                to: if first == 1 { scope.target(arg(0)?) } else { NOWHERE },
                at: scope.address(arg(first)?, &mut space)?,
                a: scope.value(arg(first + 1)?)?,
                b: match list.get(first + 2) {
                    Some(text) => scope.value(text)?,
                    None => Value::Immediate(0),
                },
                space,
            }
        }
        "bra" => {
            let target = scope.labels.get(arg(0)?).copied();
            Op::Branch(target.ok_or_else(|| ParseError(format!("label {}", list[0])))?)
        }
        "ret" | "exit" => Op::Exit,
        "trap" => Op::Trap,
        "membar" | "fence" | "nanosleep" => Op::Nothing,
        "bar" if has("warp") => Op::WarpBarrier { mask: scope.value(arg(0)?)? },
        "bar" | "barrier" if has("sync") => Op::Barrier {
            id: number(arg(0)?)? as u32,
            count: match list.get(1) {
                Some(count) => Some(scope.value(count)?),
                None => None,
            },
        },
        "shfl" => {
            let pair = list.len() == 6;
            let at = if pair { 2 } else { 1 };
            let modes = [
                ("up", Shuffle::Up),
                ("down", Shuffle::Down),
                ("bfly", Shuffle::Butterfly),
                ("idx", Shuffle::Index),
            ];
            Op::Shuffle {
                mode: modes.into_iter().find(|(name, _)| has(name)).ok_or_else(unknown)?.1,
                to: scope.target(arg(0)?),
                within: if pair { scope.target(arg(1)?) } else { NOWHERE },
                a: scope.value(arg(at)?)?,
                lane: scope.value(arg(at + 1)?)?,
                clamp: scope.value(arg(at + 2)?)?,
                mask: scope.value(arg(at + 3)?)?,
            }
        }
        "vote" => {
            let kinds = [
                ("ballot", Vote::Ballot),
                ("any", Vote::Any),
                ("all", Vote::All),
                ("uni", Vote::Uniform),
            ];
            Op::Vote {
                kind: kinds.into_iter().find(|(name, _)| has(name)).ok_or_else(unknown)?.1,
                to: scope.target(arg(0)?),
                a: scope.value(arg(1)?)?,
                mask: scope.value(arg(2)?)?,
            }
        }
        "redux" => {
            let kinds = [
                ("add", Atomic::Add),
                ("min", Atomic::Min),
                ("max", Atomic::Max),
                ("and", Atomic::And),
                ("or", Atomic::Or),
                ("xor", Atomic::Xor),
            ];
            Op::Redux {
                op: kinds.into_iter().find(|(name, _)| has(name)).ok_or_else(unknown)?.1,
                ty: need()?,
                to: scope.target(arg(0)?),
                a: scope.value(arg(1)?)?,
                mask: scope.value(arg(2)?)?,
            }
        }
        "activemask" => Op::ActiveMask { to: scope.target(arg(0)?) },
        "cp" if has("async") => {
            if has("commit_group") {
                Op::CopyCommit
            } else if has("wait_all") {
                Op::CopyWait(0)
            } else if has("wait_group") {
                Op::CopyWait(number(arg(0)?)? as u32)
            } else if has("shared") && has("global") {
                let (mut shared, mut global) = (Space::Shared, Space::Global);
                Op::Copy {
                    to: scope.address(arg(0)?, &mut shared)?,
                    from: scope.address(arg(1)?, &mut global)?,
                    bytes: number(arg(2)?)? as u32,
                    read: match list.get(3) {
                        Some(read) => Some(scope.value(read)?),
                        None => None,
                    },
                }
            } else {
                return Err(unknown());
            }
        }
        "mma" => {
            let shape = if has("m16n8k8") && has("tf32") {
                Mma::Tf32K8
            } else if has("m16n8k4") && has("tf32") {
                Mma::Tf32K4
            } else if has("m16n8k16") && full.ends_with(".f32.f16.f16.f32") {
                Mma::F16K16
            } else {
                return Err(unknown());
            };
            Op::Mma {
                shape,
                to: scope.targets(arg(0)?),
                a: scope.list(arg(1)?)?,
                b: scope.list(arg(2)?)?,
                c: scope.list(arg(3)?)?,
            }
        }
        "ldmatrix" => {
            let mut space = Space::Shared;
            Op::LoadMatrix {
                transposed: has("trans"),
                to: scope.targets(arg(0)?),
                from: scope.address(arg(1)?, &mut space)?,
            }
        }
        _ => return Err(unknown()),
    })
}
