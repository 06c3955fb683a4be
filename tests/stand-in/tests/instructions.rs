//! Instructions against values worked out by hand, and the matrix fragments against the tables of the
//! PTX manual (ISA 8.2, "Matrix Fragments for mma.m16n8k8", "mma.m16n8k16" and "ldmatrix").

use sepal_stand_in::{Launch, Memory, Module, run};

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
