//! Changes of what the guest's CPUs are, in the terms of Firecracker's custom CPU templates (its
//! docs/cpu_templates/cpu-templates.md).

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Changes of CPUID and of MSRs, in the order in which they are made. As text, which takes less of a program than a
/// structure in each format, a word for each: `0x1.0x0/0:ecx=0b1x0` of a leaf with its flags, `0x10a=0b1x` of an MSR.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuTemplate {
    /// What the CPUID instruction says.
    pub cpuid: Vec<CpuidChange>,
    /// The values with which MSRs start.
    pub msrs: Vec<MsrChange>,
}

/// A change of what the instruction writes to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidChange {
    /// EAX of the instruction.
    pub leaf: Number,
    /// Its ECX.
    pub subleaf: Number,
    /// KVM's flags of the leaf (KVM_CPUID_FLAG_SIGNIFCANT_INDEX: ECX counts).
    pub flags: u32,
    /// The register.
    pub register: CpuidRegister,
    /// Its new bits.
    pub bitmap: Bitmap<32>,
}

/// The registers that CPUID writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "registers by name")]
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl CpuidRegister {
    const NAMES: [(Self, &str); 4] =
        [(Self::Eax, "eax"), (Self::Ebx, "ebx"), (Self::Ecx, "ecx"), (Self::Edx, "edx")];
}

/// A change of an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrChange {
    /// Its number.
    pub addr: Number,
    /// Its new bits.
    pub bitmap: Bitmap<64>,
}

impl FromStr for CpuTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut template = Self::default();
        for word in text.split_whitespace() {
            let (place, bits) =
                word.split_once('=').ok_or_else(|| format!("'{word}' has no bits"))?;
            match place.split_once(':') {
                Some((place, register)) => {
                    template.cpuid.push(cpuid_change(place, register, bits)?)
                }
                None => {
                    template.msrs.push(MsrChange { addr: place.parse()?, bitmap: bits.parse()? })
                }
            }
        }
        Ok(template)
    }
}

fn cpuid_change(place: &str, register: &str, bits: &str) -> Result<CpuidChange, String> {
    let wrong = || format!("'{place}:{register}': say a leaf and a register as in 0x1.0x0/0:ecx");
    let (leaf, rest) = place.split_once('.').ok_or_else(wrong)?;
    let (subleaf, flags) = rest.split_once('/').ok_or_else(wrong)?;
    let flags = flags.parse().map_err(|_| wrong())?;
    let mut names = CpuidRegister::NAMES.iter();
    let (register, _) = names.find(|(_, name)| *name == register).ok_or_else(wrong)?;
    let (leaf, subleaf, bitmap) = (leaf.parse()?, subleaf.parse()?, bits.parse()?);
    Ok(CpuidChange { leaf, subleaf, flags, register: *register, bitmap })
}

impl fmt::Display for CpuTemplate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for CpuidChange { leaf, subleaf, flags, register, bitmap } in &self.cpuid {
            let (_, name) = CpuidRegister::NAMES[*register as usize];
            write!(f, "{leaf}.{subleaf}/{flags}:{name}={bitmap} ")?;
        }
        self.msrs.iter().try_for_each(|MsrChange { addr, bitmap }| write!(f, "{addr}={bitmap} "))
    }
}

/// A number with its base: `0x1f` or `0b11`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub u32);

impl FromStr for Number {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = [("0x", 16), ("0b", 2)];
        let mut digits =
            digits.iter().filter_map(|(name, base)| Some((text.strip_prefix(name)?, base)));
        let number =
            digits.next().and_then(|(digits, base)| u32::from_str_radix(digits, *base).ok());
        number
            .map(Self)
            .ok_or_else(|| format!("'{text}': say a number of 32 bits as in 0x1f or 0b11"))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Bits that change, and bits that stay as they are: `0b1x0`, the highest first. Bits that are left out stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bitmap<const WIDTH: usize> {
    changed: u64,
    value: u64,
}

impl<const WIDTH: usize> Bitmap<WIDTH> {
    /// `value` with the bits that change.
    pub fn applied_to(self, value: u64) -> u64 {
        value & !self.changed | self.value
    }
}

impl<const WIDTH: usize> FromStr for Bitmap<WIDTH> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}': say 0b and up to {WIDTH} of 0, 1 and x, which keeps a bit");
        let digits = text.strip_prefix("0b").unwrap_or(text).bytes().filter(|digit| *digit != b'_');
        let mut bitmap = Self { changed: 0, value: 0 };
        for (at, digit) in digits.rev().enumerate() {
            let bit = 1u64.checked_shl(at as u32).filter(|_| at < WIDTH).ok_or_else(wrong)?;
            let (changed, value) = match digit {
                b'x' => (0, 0),
                b'0' => (bit, 0),
                b'1' => (bit, bit),
                _ => return Err(wrong()),
            };
            bitmap.changed |= changed;
            bitmap.value |= value;
        }
        Ok(bitmap)
    }
}

impl<const WIDTH: usize> fmt::Display for Bitmap<WIDTH> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("0b")?;
        (0..WIDTH).rev().try_for_each(|at| match (self.changed >> at & 1, self.value >> at & 1) {
            (0, _) => f.write_str("x"),
            (_, bit) => write!(f, "{bit}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_read_as_it_is_written() {
        let text = "0x80000001.0b1/1:ecx=0b1x_0 0x10a=0 0x1.0x0/0:edx=";
        let template: CpuTemplate = text.parse().unwrap();
        let [change, none] = template.cpuid[..] else { panic!("{template:?}") };
        assert_eq!(
            (change.leaf, change.subleaf, change.flags),
            (Number(0x8000_0001), Number(1), 1)
        );
        assert_eq!((change.register, none.register), (CpuidRegister::Ecx, CpuidRegister::Edx));
        assert_eq!(change.bitmap.applied_to(0b1011), 0b1110);
        assert_eq!(none.bitmap.applied_to(7), 7);
        assert_eq!(template.msrs[0].addr, Number(0x10a));
        assert_eq!(template.msrs[0].bitmap.applied_to(u64::MAX), u64::MAX - 1);
        let text = template.to_string();
        assert!(text.contains(&format!("0b{}1x0", "x".repeat(29))), "{text}");
        assert_eq!(text.parse::<CpuTemplate>().unwrap(), template);
        for wrong in ["x", "0x1:ecx=0", "0x1.0x0:ecx=0", "0x1.0x0/x:ecx=0", "0x1.0x0/0:ecy=0", "=0"]
        {
            wrong.parse::<CpuTemplate>().unwrap_err();
        }
    }

    #[test]
    fn what_is_no_bitmap_or_number_is_refused() {
        let all = "1".repeat(64);
        assert_eq!(all.parse::<Bitmap<64>>().unwrap().applied_to(0), u64::MAX);
        assert_eq!(all[..32].parse::<Bitmap<32>>().unwrap().applied_to(0), u64::from(u32::MAX));
        assert!(all[..33].parse::<Bitmap<32>>().unwrap_err().contains("up to 32"));
        for text in ["2", "0bX", "0x1f", "0b 1", &format!("0bx{all}")] {
            assert!(text.parse::<Bitmap<64>>().unwrap_err().contains(text), "{text}");
        }
        for text in ["1", "", "0x", "0b2", "0x100000000", "-0x1"] {
            assert!(text.parse::<Number>().unwrap_err().contains("0x1f"), "{text}");
        }
    }
}
