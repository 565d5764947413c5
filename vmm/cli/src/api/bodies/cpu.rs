//! PUT /cpu-config: a custom CPU template.

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tinyvmm::config::{Bitmap, CpuTemplate, CpuidChange, CpuidRegister, MsrChange, Number, text};

use super::{or_default, refuse};

/// PUT /cpu-config
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    #[serde(default, deserialize_with = "or_default")]
    kvm_capabilities: Vec<IgnoredAny>,
    #[serde(default, deserialize_with = "or_default")]
    cpuid_modifiers: Vec<LeafModifier>,
    #[serde(default, deserialize_with = "or_default")]
    msr_modifiers: Vec<MsrModifier>,
    #[serde(default, deserialize_with = "or_default")]
    reg_modifiers: Vec<IgnoredAny>,
    #[serde(default, deserialize_with = "or_default")]
    vcpu_features: Vec<IgnoredAny>,
}

impl CpuConfig {
    /// The template. Refuses other fields that are not empty.
    pub fn template(self) -> Result<CpuTemplate> {
        let field = |list: &Vec<IgnoredAny>| list.first().copied();
        refuse(&[
            ("kvm_capabilities", &field(&self.kvm_capabilities)),
            ("reg_modifiers", &field(&self.reg_modifiers)),
            ("vcpu_features", &field(&self.vcpu_features)),
        ])?;
        ensure!(
            self.cpuid_modifiers.iter().all(|leaf| !leaf.modifiers.is_empty()),
            "modifiers: a leaf has none, leave it out"
        );
        let msrs = self.msr_modifiers.into_iter();
        let msrs = msrs.map(|MsrModifier { addr, bitmap }| MsrChange { addr, bitmap });
        let cpuid = self.cpuid_modifiers.into_iter().flat_map(LeafModifier::changes).collect();
        Ok(CpuTemplate { cpuid, msrs: msrs.collect() })
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeafModifier {
    #[serde(with = "text")]
    leaf: Number,
    #[serde(with = "text")]
    subleaf: Number,
    flags: u32,
    modifiers: Vec<RegisterModifier>,
}

impl LeafModifier {
    fn changes(self) -> impl Iterator<Item = CpuidChange> {
        let Self { leaf, subleaf, flags, modifiers } = self;
        let change = move |RegisterModifier { register, bitmap }| CpuidChange {
            leaf,
            subleaf,
            flags,
            register,
            bitmap,
        };
        modifiers.into_iter().map(change)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegisterModifier {
    register: CpuidRegister,
    #[serde(with = "text")]
    bitmap: Bitmap<32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MsrModifier {
    #[serde(with = "text")]
    addr: Number,
    #[serde(with = "text")]
    bitmap: Bitmap<64>,
}
