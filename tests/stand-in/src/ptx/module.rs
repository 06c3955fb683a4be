//! Modules and kernels: declarations, blocks and labels.

use std::collections::HashMap;

use super::decode;
use super::scope::{Operand, Scope, Symbol};
use super::token::{Token, number, tokens};
use super::{ParseError, Result, error};
use crate::arithmetic::Ty;
use crate::code::{Global, Kernel, Module, Param};

impl Module {
    /// Decodes a module.
    ///
    /// # Errors
    /// Whatever is not understood, by its full name.
    pub fn parse(source: &str) -> Result<Self> {
        let tokens = tokens(source)?;
        let mut reader = Reader { source, tokens: &tokens, next: 0 };
        let mut module =
            Self { version: (0, 0), target: 0, kernels: Vec::new(), globals: Vec::new() };
        let mut symbols = Symbols::default();
        while let Some(token) = reader.peek() {
            let placed = |e: ParseError| ParseError(format!("line {}: {e}", token.line));
            item(&mut reader, &mut module, &mut symbols).map_err(placed)?;
        }
        if module.version == (0, 0) || module.target == 0 {
            return error("a module names its .version and its .target");
        }
        Ok(module)
    }
}

struct Reader<'a, 't> {
    source: &'a str,
    tokens: &'t [Token<'a>],
    next: usize,
}

impl<'a> Reader<'a, '_> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.next).copied()
    }

    fn is(&self, text: &str) -> bool {
        self.peek().is_some_and(|t| t.text == text)
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.is(text);
        self.next += usize::from(found);
        found
    }

    fn word(&mut self) -> Result<&'a str> {
        let token = self.peek().map_or_else(|| error("the source ends early"), Ok)?;
        self.next += 1;
        Ok(token.text)
    }

    fn expect(&mut self, text: &str) -> Result<()> {
        let word = self.word()?;
        if word == text { Ok(()) } else { error(format!("expected {text}, found {word}")) }
    }

    fn number(&mut self) -> Result<u64> {
        let negative = self.take("-");
        let word = self.word()?;
        let value =
            number(word).map_or_else(|| error(format!("expected a number, found {word}")), Ok)?;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    fn skip_past(&mut self, text: &str) -> Result<()> {
        while self.word()? != text {}
        Ok(())
    }

    /// Directives for debuggers end with their line.
    fn skip_line(&mut self) {
        let line = self.peek().map(|t| t.line);
        while self.peek().is_some_and(|t| Some(t.line) == line) {
            self.next += 1;
        }
    }

    fn skip_block(&mut self) -> Result<()> {
        self.skip_past("{")?;
        let mut depth = 1;
        while depth > 0 {
            match self.word()? {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Arrays of the module by their names.
#[derive(Default)]
struct Symbols<'a> {
    named: HashMap<&'a str, Symbol>,
    shared: u64,
    /// Arrays whose size the launch gives.
    dynamic: Vec<&'a str>,
}

fn item<'a>(
    reader: &mut Reader<'a, '_>,
    module: &mut Module,
    symbols: &mut Symbols<'a>,
) -> Result<()> {
    match reader.word()? {
        ".version" => {
            let version = reader.word()?;
            let parts = version.split_once('.').map(|(a, b)| (a.parse().ok(), b.parse().ok()));
            let Some((Some(major), Some(minor))) = parts else {
                return error(format!("version {version}"));
            };
            module.version = (major, minor);
        }
        ".target" => {
            let target = reader.word()?;
            let digits = target.strip_prefix("sm_").unwrap_or_default();
            let digits = digits.trim_end_matches(|c: char| !c.is_ascii_digit());
            let Ok(capability) = digits.parse() else { return error(format!("target {target}")) };
            module.target = capability;
            while reader.take(",") {
                reader.word()?;
            }
        }
        ".address_size" => {
            let size = reader.number()?;
            if size != 64 {
                return error(format!("addresses of {size} bits"));
            }
        }
        ".file" | ".loc" => reader.skip_line(),
        ".section" => reader.skip_block()?,
        ".visible" | ".weak" | ".common" | ";" => {}
        // Nothing calls a function, so what it does is of no interest.
        ".func" => {
            while !reader.is("{") && !reader.is(";") {
                reader.word()?;
            }
            if !reader.take(";") {
                reader.skip_block()?;
            }
        }
        ".extern" => {
            if reader.is(".func") {
                return Ok(());
            }
            reader.expect(".shared")?;
            symbols.dynamic.push(Declared::read(reader)?.name);
            reader.expect(";")?;
        }
        ".shared" => {
            let declared = Declared::read(reader)?;
            let at = declared.behind(&mut symbols.shared);
            symbols.named.insert(declared.name, Symbol::Shared(at));
            reader.expect(";")?;
        }
        ".global" | ".const" => {
            let declared = Declared::read(reader)?;
            let mut bytes = vec![0; declared.bytes as usize];
            if reader.take("=") {
                initialise(reader, declared.element, &mut bytes)?;
            }
            reader.expect(";")?;
            symbols.named.insert(declared.name, Symbol::Global(module.globals.len() as u32));
            module.globals.push(Global { name: declared.name.into(), bytes, at: 0 });
        }
        ".entry" => module.kernels.push(kernel(reader, symbols)?),
        other => return error(format!("directive {other} is not known")),
    }
    Ok(())
}

/// A variable: `.align 16 .b8 name[128]`.
struct Declared<'a> {
    name: &'a str,
    align: u64,
    /// Bytes of an element.
    element: u64,
    bytes: u64,
}

impl<'a> Declared<'a> {
    fn read(reader: &mut Reader<'a, '_>) -> Result<Self> {
        let (mut align, mut element, mut vector) = (1, None, 1);
        let name = loop {
            match reader.word()? {
                ".align" => align = reader.number()?,
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                // What a parameter that is a pointer points to.
                ".ptr" | ".global" | ".const" | ".shared" | ".local" => {}
                word => match word.strip_prefix('.') {
                    None => break word,
                    Some(ty) => {
                        let ty = Ty::parse(ty).map(|ty| u64::from(ty.bytes()));
                        element = Some(ty.map_or_else(|| error(format!("type {word}")), Ok)?);
                    }
                },
            }
        };
        let Some(element) = element else { return error(format!("{name} has no type")) };
        let mut bytes = element * vector;
        while reader.take("[") {
            bytes *= if reader.is("]") { 0 } else { reader.number()? };
            reader.expect("]")?;
        }
        Ok(Self { name, align: align.max(element * vector), element, bytes })
    }

    /// Its place behind what is there already.
    const fn behind(&self, end: &mut u64) -> u64 {
        let at = end.next_multiple_of(self.align);
        *end = at + self.bytes;
        at
    }
}

/// Reads the values of an array, nested or not.
fn initialise(reader: &mut Reader<'_, '_>, element: u64, bytes: &mut [u8]) -> Result<()> {
    let (mut depth, mut at) = (0, 0);
    loop {
        if reader.take("{") {
            depth += 1;
        } else if reader.take("}") {
            depth -= 1;
        } else if !reader.take(",") {
            let value = reader.number()?.to_le_bytes();
            let place = bytes.get_mut(at..at + element as usize);
            let place = place.map_or_else(|| error("more values than elements"), Ok)?;
            place.copy_from_slice(&value[..element as usize]);
            at += element as usize;
        }
        if depth == 0 {
            return Ok(());
        }
    }
}

/// A statement, not yet decoded: labels must be known before what jumps to them is.
struct Statement<'a> {
    text: &'a str,
    block: usize,
    line: usize,
    /// A predicate and what it must be.
    guard: Option<(&'a str, bool)>,
    opcode: &'a str,
    operands: Vec<Operand<'a>>,
}

fn kernel<'a>(reader: &mut Reader<'a, '_>, symbols: &Symbols<'a>) -> Result<Kernel> {
    let name = reader.word()?;
    let (mut params, mut end) = (Vec::new(), 0);
    let mut scope = Scope::new(symbols.named.clone());
    if reader.take("(") {
        while !reader.take(")") {
            reader.take(",");
            reader.expect(".param")?;
            let declared = Declared::read(reader)?;
            let at = declared.behind(&mut end);
            scope.symbols.insert(declared.name, Symbol::Param(at));
            let (at, bytes) = (at as u32, declared.bytes as u32);
            params.push(Param { name: declared.name.into(), at, bytes });
        }
    }
    let mut threads = None;
    while !reader.take("{") {
        match reader.word()? {
            ".maxntid" | ".reqntid" => {
                let mut product = reader.number()?;
                while reader.take(",") {
                    product *= reader.number()?;
                }
                threads = Some(product as u32);
            }
            ".minnctapersm" | ".maxnreg" => {
                reader.number()?;
            }
            other => return error(format!("directive {other} of a kernel is not known")),
        }
    }
    let (statements, shared, local) = body(reader, &mut scope, symbols)?;
    let (mut code, mut classes) = (Vec::new(), Vec::new());
    for statement in &statements {
        let Statement { block, guard, opcode, ref operands, .. } = *statement;
        scope.enter(block);
        let instruction = decode::instruction(guard, opcode, operands, &mut scope);
        let (class, instruction) = instruction.map_err(|e| {
            ParseError(format!("line {}: `{}`: {e}", statement.line, statement.text))
        })?;
        code.push(instruction);
        classes.push(class);
    }
    decode::place(&mut code, &scope);
    let texts = statements.iter().map(|s| s.text.to_owned()).collect();
    let registers = scope.registers();
    let Scope { specials, constants, addresses: symbols, .. } = scope;
    Ok(Kernel {
        name: name.into(),
        param_bytes: end as u32,
        threads,
        shared: shared as u32,
        local: local as u32,
        registers,
        specials,
        constants,
        symbols,
        code,
        classes,
        texts,
        params,
    })
}

/// The statements of a kernel, and bytes of its static shared and of its local memory.
fn body<'a>(
    reader: &mut Reader<'a, '_>,
    scope: &mut Scope<'a>,
    symbols: &Symbols<'a>,
) -> Result<(Vec<Statement<'a>>, u64, u64)> {
    let (mut statements, mut shared, mut local, mut depth) = (Vec::new(), symbols.shared, 0, 1);
    while depth > 0 {
        let Some(token) = reader.peek() else { return error("a kernel is not closed") };
        match token.text {
            "{" => {
                depth += 1;
                scope.open();
                reader.next += 1;
            }
            "}" => {
                depth -= 1;
                scope.close();
                reader.next += 1;
            }
            ";" => reader.next += 1,
            ".reg" => registers(reader, scope)?,
            ".shared" | ".local" => {
                reader.next += 1;
                let declared = Declared::read(reader)?;
                let symbol = if token.text == ".shared" {
                    Symbol::Shared(declared.behind(&mut shared))
                } else {
                    Symbol::Local(declared.behind(&mut local))
                };
                scope.symbols.insert(declared.name, symbol);
                reader.expect(";")?;
            }
            ".param" => return error("calls are not known"),
            ".pragma" => reader.skip_past(";")?,
            ".loc" => reader.skip_line(),
            _ if reader.tokens.get(reader.next + 1).is_some_and(|t| t.text == ":") => {
                reader.next += 2;
                if reader.take(".branchtargets") {
                    let mut labels = vec![reader.word()?];
                    while reader.take(",") {
                        labels.push(reader.word()?);
                    }
                    reader.expect(";")?;
                    scope.table(token.text, labels);
                } else {
                    scope.label(token.text, statements.len() as u32);
                }
            }
            _ => statements.push(statement(reader, scope.current())?),
        }
    }
    let dynamic = shared.next_multiple_of(16);
    for name in &symbols.dynamic {
        scope.symbols.insert(name, Symbol::Shared(dynamic));
    }
    Ok((statements, dynamic, local))
}

fn registers<'a>(reader: &mut Reader<'a, '_>, scope: &mut Scope<'a>) -> Result<()> {
    reader.expect(".reg")?;
    let ty = reader.word()?;
    if ty.strip_prefix('.').and_then(Ty::parse).is_none() {
        return error(format!("registers of type {ty}"));
    }
    loop {
        let name = reader.word()?;
        let family = if reader.take("<") {
            let count = reader.number()?;
            reader.expect(">")?;
            Some(count)
        } else {
            None
        };
        scope.declare(name, family);
        if !reader.take(",") {
            return reader.expect(";");
        }
    }
}

fn statement<'a>(reader: &mut Reader<'a, '_>, block: usize) -> Result<Statement<'a>> {
    let first = reader.peek().map_or((0, 0), |t| (t.at, t.line));
    let guard = if reader.take("@") {
        let negated = reader.take("!");
        Some((reader.word()?, !negated))
    } else {
        None
    };
    let opcode = reader.word()?;
    let mut operands = Vec::new();
    while !reader.is(";") {
        operands.push(operand(reader)?);
        if !reader.take(",") && !reader.take("|") && !reader.is(";") {
            return error(format!("expected ; after the operands of {opcode}"));
        }
    }
    let end = reader.peek().map_or(first.0, |t| t.at);
    reader.next += 1;
    let text = &reader.source[first.0..end];
    Ok(Statement { text, block, line: first.1, guard, opcode, operands })
}

fn operand<'a>(reader: &mut Reader<'a, '_>) -> Result<Operand<'a>> {
    Ok(match reader.word()? {
        "{" => {
            let mut list = Vec::new();
            while !reader.take("}") {
                list.push(operand(reader)?);
                reader.take(",");
            }
            Operand::List(list)
        }
        "[" => {
            let base = reader.word()?;
            let offset = if reader.take("+") || reader.is("-") { reader.number()? } else { 0 };
            reader.expect("]")?;
            let offset = i32::try_from(offset as i64);
            Operand::Address(base, offset.or_else(|_| error("an offset of more than 32 bits"))?)
        }
        "!" => Operand::Not(reader.word()?),
        "-" => Operand::Negative(reader.word()?),
        "(" => return error("calls are not known"),
        word => Operand::Word(word),
    })
}
