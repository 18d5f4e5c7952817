//! Run-time choice of the instruction set, and a macro that compiles one loop for each of them.

use std::sync::LazyLock;

/// Instruction sets that the kernels are compiled for, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Whatever the target guarantees; on aarch64 that is NEON.
    Portable,
    /// AVX2 with fused multiply-add and f16 conversion (x86-64-v3).
    Avx2,
    /// AVX-512 F, BW, DQ and VL (x86-64-v4).
    Avx512,
    /// The above with bf16 dot products.
    Avx512Bf16,
    /// aarch64 with bf16 dot products (Armv8.6).
    NeonBf16,
    /// AVX-512 with bf16 dot products, and with tile registers and their bf16 products, which the system lets this process use.
    Amx,
}

impl Level {
    /// The best that this processor has, unless `BLIP2_CPU` names a lower one (`portable`, `avx2`, `avx512`,
    /// `avx512bf16`).
    pub fn detect() -> Self {
        static LEVEL: LazyLock<Level> = LazyLock::new(|| {
            let best = best();
            let asked = match std::env::var("BLIP2_CPU").as_deref() {
                Ok("portable") => Level::Portable,
                Ok("avx2") => Level::Avx2,
                Ok("avx512") => Level::Avx512,
                Ok("avx512bf16") => Level::Avx512Bf16,
                _ => best,
            };
            asked.min(best)
        });
        *LEVEL
    }
}

/// Whether inputs that meet bf16 weights are rounded to bf16, as torch does; the sums stay f32.
///
/// By default where the processor has tile registers, which make products with many rows several times as fast.
/// `BLIP2_BF16=fast` asks for it also where there are only bf16 dot products (some processors gain, some lose),
/// `BLIP2_BF16=exact` forbids it everywhere.
pub fn rounds_inputs() -> bool {
    static FROM: LazyLock<Option<Level>> = LazyLock::new(|| match std::env::var("BLIP2_BF16").as_deref() {
        Ok("exact") => None,
        Ok("fast") => Some(Level::Avx512Bf16),
        _ => Some(Level::Amx),
    });
    FROM.is_some_and(|least| Level::detect() >= least)
}

#[cfg(target_arch = "x86_64")]
fn best() -> Level {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma") && has!("f16c")) {
        return Level::Portable;
    }
    if !(has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")) {
        return Level::Avx2;
    }
    if !has!("avx512bf16") {
        return Level::Avx512;
    }
    if has_amx() { Level::Amx } else { Level::Avx512Bf16 }
}

/// Whether the processor has AMX with bf16 products and Linux grants its registers to this process: all threads,
/// also those that run already (`arch_prctl(2)`, "Using XSTATE features in user space applications" in the
/// kernel's documentation).
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_amx() -> bool {
    use std::arch::{asm, x86_64::__cpuid_count};
    /// `amx-bf16` and `amx-tile` in EDX of leaf 7.
    const BITS: u32 = 1 << 22 | 1 << 24;
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    // SAFETY: every x86-64 has `cpuid`; newer compilers than the oldest supported one know that
    #[allow(unused_unsafe)]
    let features = unsafe { __cpuid_count(7, 0) };
    if features.edx & BITS != BITS {
        return false;
    }
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call without pointers; the kernel keeps all registers but these
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// Other systems have other ways to grant the registers.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn has_amx() -> bool {
    false
}

#[cfg(target_arch = "aarch64")]
fn best() -> Level {
    match std::arch::is_aarch64_feature_detected!("bf16") {
        true => Level::NeonBf16,
        false => Level::Portable,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn best() -> Level {
    Level::Portable
}

/// Defines `$name`, which runs `$body::<FMA>` compiled for the instruction set of this processor.
///
/// `$body` must be `#[inline(always)]` and take the constant that says whether `mul_add` is one instruction.
macro_rules! per_level {
    ($(#[$attr:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$attr])*
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::level::Level;
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512($($arg: $type),*) $(-> $ret)? { $body::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $type),*) $(-> $ret)? { $body::<true>($($arg),*) }
                let level = Level::detect();
                if level >= Level::Avx512 {
                    // SAFETY: detected
                    return unsafe { avx512($($arg),*) };
                }
                if level >= Level::Avx2 {
                    // SAFETY: detected
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body::<{ cfg!(any(target_feature = "fma", target_arch = "aarch64")) }>($($arg),*)
        }
    };
}
pub(crate) use per_level;
