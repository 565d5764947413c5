//! The start of a bzImage that a loader takes: header fields as in Documentation/arch/x86/boot.rst.

use tinyvmm::layout::MIB;

/// Bytes before the protected-mode kernel.
pub const SETUP: usize = 1024;

/// The setup code and its header, without the sizes of what follows.
pub fn setup() -> Vec<u8> {
    let mut file = vec![0; SETUP];
    put(&mut file, 0x1f1, &[1]); // setup_sects
    put(&mut file, 0x1fe, &[0x55, 0xaa]);
    put(&mut file, 0x200, &[0xeb, 0x66]); // a jump whose target is the header's end
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x020fu16.to_le_bytes()); // version
    put(&mut file, 0x211, &[1]); // loadflags: LOADED_HIGH
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(&mut file, 0x236, &1u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(&mut file, 0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(&mut file, 0x258, &MIB.to_le_bytes()); // pref_address
    file
}

pub fn put(file: &mut [u8], offset: usize, bytes: &[u8]) {
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}
