//! Instructions against values worked out by hand, and the matrix fragments against the tables of the
//! PTX manual (ISA 8.2, "Matrix Fragments for mma.m16n8k8", "mma.m16n8k16" and "ldmatrix").

use sepal_stand_in::{Class, Launch, Memory, Module, run};

/// Runs a body by `threads` threads; each may write `%words` words from `%out` on, of which there
/// are 4 for each thread, after reading as many from `%in`.
fn run_body(body: &str, threads: u32, input: &[u32]) -> Vec<u32> {
    let ptx = format!(
        ".version 8.2
        .target sm_80
        .visible .entry kernel(.param .u64 in, .param .u64 out)
        {{
            .reg .b64 %in, %out, %at, %w, %o, %e, %f, %g;
            .reg .b32 %t, %a<4>, %b<4>, %c<4>, %d<4>, %a, %b, %c, %d, %r, %v, %h, %i, %x;
            .reg .pred %p, %q, %l;
            .shared .align 16 .b8 room[1024];
            ld.param.u64 %in, [in];
            ld.param.u64 %out, [out];
            mov.u32 %t, %tid.x;
            mul.wide.u32 %at, %t, 16;
            add.u64 %out, %out, %at;
            {body}
            ret;
        }}"
    );
    let module = Module::parse(&ptx).unwrap_or_else(|e| panic!("{e}"));
    let mut memory = Memory::default();
    let bytes: Vec<u8> = input.iter().flat_map(|w| w.to_le_bytes()).collect();
    let from = memory.allocate(bytes.len().max(4));
    memory.write(from, &bytes).unwrap();
    let len = threads as usize * 16;
    let to = memory.allocate(len);
    memory.write(to, &vec![0; len]).unwrap();
    let params: Vec<u8> = [from, to].iter().flat_map(|a| a.to_le_bytes()).collect();
    let launch =
        Launch { grid: [1, 1, 1], block: [threads, 1, 1], shared: 0, params: &params, seed: 5 };
    run(&module.kernels[0], launch, &mut memory).unwrap_or_else(|fault| panic!("{fault}"));
    let mut out = vec![0; len];
    memory.read(to, &mut out).unwrap();
    out.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// The 32-bit result of one thread's body, left in `%r`.
#[track_caller]
fn gives(body: &str, expected: u32) {
    let found = run_body(&format!("{body} st.global.b32 [%out], %r;"), 1, &[])[0];
    assert_eq!(found, expected, "{body}: {found:#x}, expected {expected:#x}");
}

fn bits(v: f32) -> u32 {
    v.to_bits()
}

#[test]
fn integers() {
    gives("mov.u32 %a, 7; add.s32 %r, %a, -9;", -2i32 as u32);
    gives("mov.u32 %a, -7; div.s32 %r, %a, 2;", -3i32 as u32);
    gives("mov.u32 %a, -7; rem.s32 %r, %a, 2;", -1i32 as u32);
    gives("mov.u32 %a, -7; div.u32 %r, %a, 2;", 0x7fff_fffc);
    gives("mov.u32 %a, 0x80000000; mul.hi.u32 %r, %a, 6;", 3);
    gives("mov.u32 %a, -2; mul.hi.s32 %r, %a, 3;", u32::MAX);
    gives("mov.u32 %a, 5; mad.lo.s32 %r, %a, -3, 1;", -14i32 as u32);
    gives("mov.u32 %a, -8; shr.s32 %r, %a, 1;", -4i32 as u32);
    gives("mov.u32 %a, -8; shr.u32 %r, %a, 28;", 15);
    gives("mov.u32 %a, 1; shl.b32 %r, %a, 32;", 0);
    gives("mov.u32 %a, -3; min.s32 %r, %a, 2;", -3i32 as u32);
    gives("mov.u32 %a, -3; min.u32 %r, %a, 2;", 2);
    gives("mov.u32 %a, 0xf0; popc.b32 %r, %a;", 4);
    gives("mov.u32 %a, 0xf0; clz.b32 %r, %a;", 24);
    gives("mov.u32 %a, 1; brev.b32 %r, %a;", 1 << 31);
    gives("mov.u32 %a, 0xabcd; bfe.u32 %r, %a, 4, 8;", 0xbc);
    gives("mov.u32 %a, 0xabcd; bfe.s32 %r, %a, 4, 8;", 0xffff_ffbc);
    gives("mov.u32 %a, 0xf; bfi.b32 %r, %a, 0, 8, 4;", 0xf00);
    gives("mov.u32 %a, 0x33221100; prmt.b32 %r, %a, 0x77665544, 0x7250;", 0x7722_5500);
    gives("mov.u32 %a, 0x80000001; shf.l.wrap.b32 %r, %a, 3, 4;", 0x38);
    gives("mov.u32 %a, 0xc; lop3.b32 %r, %a, 0xa, 0, 0x3c;", 0x6);
    gives(
        "mov.u32 %a, 6; mul.wide.u32 %w, %a, 0x80000000; shr.u64 %w, %w, 32; cvt.u32.u64 %r, %w;",
        3,
    );
}

#[test]
fn floats() {
    gives("mov.f32 %a, 0f3f800000; div.rn.f32 %r, %a, 0f40400000;", bits(1.0 / 3.0));
    gives("mov.f32 %a, 0f7fc00000; max.f32 %r, %a, 0f40400000;", bits(3.0));
    gives("mov.f32 %a, 0f80000000; max.f32 %r, %a, 0f00000000;", 0);
    gives(
        "mov.f32 %a, 0f3f800001; fma.rn.f32 %r, %a, %a, 0fbf800000;",
        bits(1.000_000_1f32.mul_add(1.000_000_1, -1.0)),
    );
    gives("mov.f32 %a, 0f40000000; sqrt.rn.f32 %r, %a;", bits(2f32.sqrt()));
    gives("mov.f32 %a, 0f40400000; ex2.approx.f32 %r, %a;", bits(8.0));
    gives("mov.f32 %a, 0f40200000; cvt.rni.s32.f32 %r, %a;", 2);
    gives("mov.f32 %a, 0fc0200000; cvt.rzi.s32.f32 %r, %a;", -2i32 as u32);
    gives("mov.f32 %a, 0fc0200000; cvt.rzi.u32.f32 %r, %a;", 0);
    gives("mov.f32 %a, 0f7fc00000; cvt.rzi.s32.f32 %r, %a;", 0);
    gives("mov.u32 %a, 16777217; cvt.rn.f32.u32 %r, %a;", bits(16_777_216.0));
    gives("mov.f32 %a, 0f3f802fff; cvt.rna.tf32.f32 %r, %a;", 0x3f80_2000);
    gives("mov.f32 %a, 0f3f803000; cvt.rna.tf32.f32 %r, %a;", 0x3f80_4000);
    gives("mov.f32 %a, 0f3fc00000; cvt.rn.f16.f32 %h, %a; cvt.u32.u16 %r, %h;", 0x3e00);
    gives("mov.u16 %h, 0x3e00; cvt.f32.f16 %r, %h;", bits(1.5));
}

#[test]
fn directed_roundings() {
    // A tenth is not an f32; 1 + 2^-24 lies between two.
    let near = |up: bool| if up { 0x3f80_0001 } else { 0x3f80_0000 };
    for (round, up) in [("rn", false), ("rz", false), ("rm", false), ("rp", true)] {
        gives(&format!("mov.f32 %a, 0f3f800000; add.{round}.f32 %r, %a, 0f33800000;"), near(up));
        let product = format!("fma.{round}.f32 %r, %a, 0f33800000, 0f3f800000;");
        gives(&format!("mov.f32 %a, 0f3f800000; {product}"), near(up));
    }
    // Below zero, down is away from it.
    for (round, away) in [("rz", false), ("rm", true), ("rp", false)] {
        let expected = near(away) | 1 << 31;
        gives(&format!("mov.f32 %a, 0fbf800000; add.{round}.f32 %r, %a, 0fb3800000;"), expected);
    }
    gives("mov.f64 %w, 0d3FF0000010000000; cvt.rp.f32.f64 %r, %w;", 0x3f80_0001);
    gives("mov.f64 %w, 0d3FF0000010000000; cvt.rn.f32.f64 %r, %w;", 0x3f80_0000);
    gives("mov.u32 %a, 16777217; cvt.rp.f32.u32 %r, %a;", bits(16_777_218.0));
    gives("mov.f32 %a, 0f00000001; add.ftz.f32 %r, %a, %a;", 0);
    gives("mov.f32 %a, 0f00000001; add.f32 %r, %a, %a;", 2);
    gives("mov.f32 %a, 0f40000000; add.sat.f32 %r, %a, %a;", bits(1.0));
}

#[test]
fn halves() {
    // 1.5 and 2 in one register, 0.5 and -1 in another.
    let two = "mov.b32 %a, 0x40003e00; mov.b32 %b, 0xbc003800;";
    gives(&format!("{two} add.f16x2 %r, %a, %b;"), 0x3c00_4000);
    gives(&format!("{two} mul.f16x2 %r, %a, %b;"), 0xc000_3a00);
    gives(&format!("{two} fma.rn.f16x2 %r, %a, %b, %a;"), 0x0000_4080);
    gives(&format!("{two} neg.f16x2 %r, %b;"), 0x3c00_b800);
    gives(&format!("{two} max.f16 %r, %a, %b;"), 0x3e00);
    gives(&format!("{two} setp.gt.f16 %p, %a, %b; selp.u32 %r, 1, 0, %p;"), 1);
    gives("mov.f32 %a, 0f3f800000; cvt.rn.f16x2.f32 %r, %a, 0f40000000;", 0x3c00_4000);
    // 1 + 2^-11 is rounded to even.
    gives("mov.f32 %a, 0f3f801000; cvt.rn.f16.f32 %r, %a;", 0x3c00);
}

#[test]
fn conversions_of_integers() {
    gives("mov.u32 %a, 0x180; cvt.u8.u32 %h, %a; cvt.u32.u8 %r, %h;", 0x80);
    gives("mov.u32 %a, 0x180; cvt.s32.s8 %r, %a;", 0xffff_ff80);
    gives("mov.u32 %a, 300; cvt.sat.u8.u32 %r, %a;", 255);
    gives("mov.u32 %a, -300; cvt.sat.s8.s32 %r, %a;", -128i32 as u32);
    gives("mov.u32 %a, -1; cvt.s64.s32 %w, %a; shr.u64 %w, %w, 32; cvt.u32.u64 %r, %w;", u32::MAX);
    gives("mov.u32 %a, -1; cvt.u64.u32 %w, %a; shr.u64 %w, %w, 32; cvt.u32.u64 %r, %w;", 0);
    gives("mov.b64 %w, {1, 2}; mov.b64 {%a, %r}, %w;", 2);
}

#[test]
fn rarer_integers() {
    gives("mov.u32 %a, 0x01020304; dp4a.u32.u32 %r, %a, 0x01010101, 5;", 15);
    gives("mov.u32 %a, 0xff000000; dp4a.s32.u32 %r, %a, 0x02000000, 0;", -2i32 as u32);
    gives("mov.u32 %a, 7; sad.u32 %r, %a, 10, 1;", 4);
    gives("mov.u32 %a, 0x00ff0000; bfind.u32 %r, %a;", 23);
    gives("mov.u32 %a, -1; bfind.s32 %r, %a;", u32::MAX);
    gives("mov.u32 %a, 0x00ff0000; bfind.shiftamt.u32 %r, %a;", 8);
    gives("mov.u32 %a, 0x7fffffff; add.sat.s32 %r, %a, 1;", 0x7fff_ffff);
    gives("mov.u32 %a, -5; slct.u32.s32 %r, 1, 2, %a;", 2);
    gives("mov.u32 %a, -5; abs.s32 %r, %a;", 5);
    gives("mov.f32 %a, 0fbf800000; copysign.f32 %r, %a, 0f40000000;", bits(-2.0));
    gives("mov.f32 %a, 0f7f800000; testp.finite.f32 %p, %a; selp.u32 %r, 1, 0, %p;", 0);
}

#[test]
fn branches_by_a_table() {
    let body = "mov.u32 %a, 1; $cases: .branchtargets $zero, $one; brx.idx %a, $cases;
        $zero: mov.u32 %r, 10; bra $end; $one: mov.u32 %r, 11; $end:";
    gives(body, 11);
}

#[test]
fn spaces() {
    gives("{ .local .b32 own[2]; st.local.b32 [own+4], 7; ld.local.b32 %r, [own+4]; }", 7);
    let generic = "{ .local .b32 own[2]; mov.u64 %w, own; cvta.local.u64 %w, %w; st.b32 [%w], 9;
        isspacep.local %p, %w; @%p ld.local.b32 %r, [own]; }";
    gives(generic, 9);
    let shared = "mov.u64 %w, room; cvta.shared.u64 %w, %w; st.u8 [%w+3], 0x81; ld.s8 %r, [%w+3];";
    gives(shared, 0xffff_ff81);
    gives(
        "ld.param.u32 %r, [in+4]; mov.u64 %w, in; ld.param.u32 %a, [%w+4]; sub.u32 %r, %r, %a;",
        0,
    );
}

#[test]
fn arrays_of_a_module() {
    let ptx = "
        .version 8.2
        .target sm_80
        .address_size 64
        .const .align 4 .b32 table[3] = {5, 0f3F800000, 0x10};
        .visible .global .align 1 .b8 bytes[4] = {1, 2};
        .visible .entry kernel(.param .u64 out)
        {
            .reg .b64 %rd<4>;
            .reg .b32 %r<4>;
            ld.param.u64 %rd1, [out];
            ld.const.b32 %r1, [table+8];
            mov.u64 %rd2, bytes;
            ld.global.u8 %r2, [%rd2+1];
            add.u32 %r3, %r1, %r2;
            st.global.u32 [%rd1], %r3;
        }";
    let mut module = Module::parse(ptx).unwrap();
    let mut memory = Memory::default();
    module.place(&mut memory);
    let out = memory.allocate(4);
    let kernel = module.kernel("kernel").unwrap();
    let params = kernel.pack(&[&out.to_le_bytes()]);
    let launch = Launch { grid: [1; 3], block: [1; 3], shared: 0, params: &params, seed: 1 };
    let counts = run(kernel, launch, &mut memory).unwrap();
    let mut found = [0; 4];
    memory.read(out, &mut found).unwrap();
    assert_eq!(u32::from_le_bytes(found), 18);
    assert_eq!(module.global("bytes").map(|(_, len)| len), Some(4));
    assert_eq!((counts.of(Class::GlobalLoad), counts.of(Class::GlobalStore)), (2, 1));
    assert_eq!(counts.total(), 6);
}

#[test]
fn what_is_not_known_is_named_in_full() {
    let refused = |statement: &str| {
        let ptx = format!(
            ".version 8.2\n.target sm_80\n.visible .entry kernel() {{\n.reg .b32 %r<4>;\n{statement}\n}}"
        );
        Module::parse(&ptx).expect_err(statement).to_string()
    };
    for statement in [
        "add.rn.u32 %r1, %r2, %r3;",
        "fma.rna.f32 %r1, %r2, %r3, %r3;",
        "div.rz.f32 %r1, %r2, %r3;",
        "mma.sync.aligned.m16n8k8.row.row.f32.tf32.tf32.f32 {%r1}, {%r2}, {%r3}, {%r1};",
        "ld.global.v8.f32 %r1, [%r2];",
        "shfl.up.b32 %r1, %r2, 1, 0;",
    ] {
        let opcode = statement.split(' ').next().unwrap();
        assert!(refused(statement).contains(opcode), "{}", refused(statement));
    }
    assert!(refused("add.u32 %r1, %r2, %r9;").contains("%r9 is not declared"));
    assert!(refused("add.u32 %r1, %r2, %r3, %r3;").contains("3 operands"));
    assert!(refused("bra $nowhere;").contains("label $nowhere"));
    assert!(refused("call.uni f, (%r1);").contains("calls are not known"));
}

#[test]
fn comparisons() {
    let select = |test: &str| {
        format!("mov.f32 %a, 0f7fc00000; mov.f32 %b, 0f3f800000; {test} selp.u32 %r, 1, 0, %p;")
    };
    gives(&select("setp.lt.f32 %p, %a, %b;"), 0);
    gives(&select("setp.ne.f32 %p, %a, %b;"), 0);
    gives(&select("setp.neu.f32 %p, %a, %b;"), 1);
    gives(&select("setp.geu.f32 %p, %a, %b;"), 1);
    gives(&select("setp.nan.f32 %p, %a, %b;"), 1);
    gives(&select("setp.lt.s32 %p, -1, 1;"), 1);
    gives(&select("setp.lt.u32 %p, -1, 1;"), 0);
    gives(&select("setp.lt.s32 %q, -1, 1; setp.lt.and.u32 %p, 1, 2, %q;"), 1);
    gives(&select("setp.lt.s32 %q|%p, -1, 1;"), 0);
}

#[test]
fn warps() {
    let lanes = |body: &str| {
        let body = format!("mov.u32 %v, %laneid; {body} st.global.b32 [%out], %r;");
        run_body(&body, 32, &[]).into_iter().step_by(4).collect::<Vec<u32>>()
    };
    let shuffled = lanes("shfl.sync.bfly.b32 %r, %v, 5, 31, -1;");
    assert_eq!(shuffled, (0..32).map(|l| l ^ 5).collect::<Vec<_>>());
    let down = lanes("shfl.sync.down.b32 %r, %v, 3, 31, -1;");
    assert_eq!(down, (0..32).map(|l| if l < 29 { l + 3 } else { l }).collect::<Vec<_>>());
    // Up is clamped at lane 0, within segments of 8 lanes by the mask in bits 8 to 12.
    let up = lanes("shfl.sync.up.b32 %r, %v, 2, 0x1800, -1;");
    assert_eq!(up, (0..32).map(|l| if l % 8 < 2 { l } else { l - 2 }).collect::<Vec<_>>());
    let one = lanes("shfl.sync.idx.b32 %r, %v, 9, 31, -1;");
    assert_eq!(one, [9; 32]);
    let ballot = lanes("setp.lt.u32 %p, %v, 5; vote.sync.ballot.b32 %r, %p, -1;");
    assert_eq!(ballot, [0x1f; 32]);
    assert_eq!(lanes("redux.sync.max.u32 %r, %v, -1;"), [31; 32]);
    let parity = "and.b32 %a, %v, 1; match.any.sync.b32 %r, %a, -1;";
    let same = |l: u32| if l.is_multiple_of(2) { 0x5555_5555 } else { 0xaaaa_aaaa };
    assert_eq!(lanes(parity), (0..32).map(same).collect::<Vec<_>>());
    assert_eq!(lanes("match.all.sync.b32 %r|%p, 7, -1;"), [u32::MAX; 32]);
    // Two groups of lanes meet apart from each other, at one place.
    let halves = "setp.lt.u32 %p, %v, 16; selp.b32 %a, 0xffff, 0xffff0000, %p;
        redux.sync.add.u32 %r, 1, %a;";
    assert_eq!(lanes(halves), [16; 32]);
    let some = "setp.lt.u32 %p, %v, 5; bar.red.popc.u32 %r, 0, %p;";
    assert_eq!(lanes(some), [5; 32]);
}

#[test]
fn atomics() {
    let body = "setp.ne.u32 %p, %t, 0; @%p bra $wait; st.shared.u32 [room], 10; $wait: bar.sync 0;
        atom.shared.add.u32 %o, [room], %t; bar.sync 0; ld.shared.u32 %r, [room]; st.global.u32 [%out], %r;";
    assert!(run_body(body, 40, &[]).into_iter().step_by(4).all(|v| v == 10 + 39 * 20));
}

/// Which element of its matrix the register `i` of a lane holds, as the manual's tables give it.
const A_TF32: fn(usize, usize) -> (usize, usize) =
    |lane, i| (lane / 4 + 8 * (i % 2), lane % 4 + 4 * (i / 2));
const B_TF32: fn(usize, usize) -> (usize, usize) = |lane, i| (lane % 4 + 4 * i, lane / 4);
const C_F32: fn(usize, usize) -> (usize, usize) =
    |lane, i| (lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2);

/// Small whole numbers, which TF32 and f16 hold.
fn entry(row: usize, column: usize, seed: usize) -> f32 {
    ((row * 7 + column * 3 + seed) % 11) as f32 - 5.0
}

#[test]
fn products_of_matrices_in_tf32() {
    // Each lane's registers, made where the manual puts them, lane after lane.
    let mut input = Vec::new();
    for lane in 0..32 {
        input.extend((0..4).map(|i| {
            let (r, c) = A_TF32(lane, i);
            bits(entry(r, c, 1))
        }));
        input.extend((0..2).map(|i| {
            let (r, c) = B_TF32(lane, i);
            bits(entry(r, c, 2))
        }));
        input.extend([0, 0]);
        input.extend((0..4).map(|i| {
            let (r, c) = C_F32(lane, i);
            bits(entry(r, c, 3))
        }));
        input.extend([0; 4]);
    }
    let body = "mul.wide.u32 %o, %t, 64; add.u64 %in, %in, %o;
        ld.global.v4.f32 {%a0, %a1, %a2, %a3}, [%in]; ld.global.v2.f32 {%b0, %b1}, [%in+16];
        ld.global.v4.f32 {%c0, %c1, %c2, %c3}, [%in+32];
        mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%b0, %b1},
            {%c0, %c1, %c2, %c3};
        st.global.v4.f32 [%out], {%d0, %d1, %d2, %d3};";
    let found = run_body(body, 32, &input);
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = C_F32(lane, i);
            let sum = (0..8)
                .fold(entry(row, column, 3), |sum, k| sum + entry(row, k, 1) * entry(k, column, 2));
            assert_eq!(f32::from_bits(found[lane * 4 + i]), sum, "lane {lane}, register {i}");
        }
    }
}

/// Registers of halves hold two columns of A, or two rows of B.
const A_F16: fn(usize, usize) -> (usize, usize) = |lane, e| {
    let (register, half) = (e / 2, e % 2);
    (lane / 4 + 8 * (register % 2), lane % 4 * 2 + half + 8 * (register / 2))
};
const B_F16: fn(usize, usize) -> (usize, usize) =
    |lane, e| (lane % 4 * 2 + e % 2 + 8 * (e / 2), lane / 4);

#[test]
fn products_of_matrices_in_f16() {
    let half = |v: f32| u32::from(half::f16::from_f32(v).to_bits());
    let pairs = |lane: usize, count: usize, of: fn(usize, usize) -> (usize, usize), seed| {
        (0..count / 2).map(move |register| {
            let element = |e: usize| {
                let (r, c) = of(lane, 2 * register + e);
                half(entry(r, c, seed))
            };
            element(0) | element(1) << 16
        })
    };
    let mut input = Vec::new();
    for lane in 0..32 {
        input.extend(pairs(lane, 8, A_F16, 1));
        input.extend(pairs(lane, 4, B_F16, 2));
        input.extend([0, 0]);
    }
    for (depth, body) in [
        (
            16,
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%d0, %d1, %d2, %d3},
            {%a0, %a1, %a2, %a3}, {%b0, %b1}, {%c0, %c0, %c0, %c0};",
        ),
        (
            8,
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%d0, %d1, %d2, %d3},
            {%a0, %a1}, {%b0}, {%c0, %c0, %c0, %c0};",
        ),
    ] {
        let body = format!(
            "mul.wide.u32 %o, %t, 32; add.u64 %in, %in, %o; mov.f32 %c0, 0f00000000;
            ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%in];
            ld.global.v2.b32 {{%b0, %b1}}, [%in+16]; {body}
            st.global.v4.f32 [%out], {{%d0, %d1, %d2, %d3}};"
        );
        let found = run_body(&body, 32, &input);
        for (lane, i) in (0..32).flat_map(|lane| (0..4).map(move |i| (lane, i))) {
            let (row, column) = C_F32(lane, i);
            let sum: f32 = (0..depth).map(|k| entry(row, k, 1) * entry(k, column, 2)).sum();
            assert_eq!(f32::from_bits(found[lane * 4 + i]), sum, "{depth}: lane {lane}, {i}");
        }
    }
}

#[test]
fn a_product_of_half_the_depth_and_what_tf32_cuts_off() {
    // A is 1 + 2^-11 in its first column, which the tensor cores read as 1; B is 3 in its first row.
    let body = "and.b32 %i, %t, 3; setp.eq.u32 %p, %i, 0;
        selp.f32 %a0, 0f3F801000, 0f00000000, %p; selp.f32 %b0, 0f40400000, 0f00000000, %p;
        mov.f32 %c0, 0f3F800000;
        mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%d0, %d1, %d2, %d3}, {%a0, %a0}, {%b0},
            {%c0, %c0, %c0, %c0};
        st.global.v4.f32 [%out], {%d0, %d1, %d2, %d3};";
    assert_eq!(run_body(body, 32, &[]), [bits(4.0); 128]);
}

#[test]
fn matrices_are_loaded_as_the_manual_lays_them() {
    // Four matrices of 8 x 8 halves, element e of the room holding e; each lane gives the row of its
    // number.
    let body = "shl.b32 %a, %t, 4; mov.u32 %b, room; add.u32 %a, %a, %b; mov.u32 %i, 0;
        $next: shl.b32 %h, %t, 3; add.u32 %h, %h, %i; shl.b32 %x, %i, 1; add.u32 %x, %x, %a; st.shared.u16 [%x], %h;
        add.u32 %i, %i, 1; setp.lt.u32 %l, %i, 8; @%l bra $next; bar.sync 0;";
    for (kind, transposed) in [("", false), (".trans", true)] {
        let load = format!(
            "{body} ldmatrix.sync.aligned.m8n8.x4{kind}.shared.b16 {{%d0, %d1, %d2, %d3}}, [%a];
            st.global.v4.b32 [%out], {{%d0, %d1, %d2, %d3}};"
        );
        let found = run_body(&load, 32, &[]);
        for (lane, matrix) in (0..32).flat_map(|lane| (0..4).map(move |m| (lane, m))) {
            let element = |e: usize| {
                let (row, column) = (lane / 4, lane % 4 * 2 + e);
                let (row, column) = if transposed { (column, row) } else { (row, column) };
                (64 * matrix + 8 * row + column) as u32
            };
            assert_eq!(
                found[lane * 4 + matrix],
                element(0) | element(1) << 16,
                "lane {lane}, matrix {matrix}"
            );
        }
    }
}
