//! Headers of packets: `struct virtio_vsock_hdr` (virtio 1.2, 5.10.6).

/// Bytes of a header.
pub const HEADER: usize = 44;
/// The host's address.
pub const HOST_CID: u64 = 2;
/// The type of stream sockets (5.10.6.2).
pub const STREAM: u16 = 1;

/// Operations (5.10.6).
pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RST: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const RW: u16 = 5;
pub const CREDIT_UPDATE: u16 = 6;
pub const CREDIT_REQUEST: u16 = 7;

/// Flags of SHUTDOWN: its sender will receive no more, and send no more.
pub const NO_RECEIVE: u32 = 1;
pub const NO_SEND: u32 = 2;
/// Both.
pub const NEITHER: u32 = NO_RECEIVE | NO_SEND;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes of data that follow.
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// The sender's room for data, and how much of it has left that room, modulo 2^32.
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Packet {
    /// Operation `op` without data, between two addresses and ports.
    pub fn new(op: u16, (src_cid, src_port): (u64, u32), (dst_cid, dst_port): (u64, u32)) -> Self {
        Self { src_cid, dst_cid, src_port, dst_port, kind: STREAM, op, ..Self::default() }
    }

    pub fn parse(bytes: [u8; HEADER]) -> Self {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[4 * at + byte]));
        let cid = |at| u64::from(word(at)) | u64::from(word(at + 1)) << 32;
        Self {
            len: word(6),
            kind: word(7) as u16,
            flags: word(8),
            buf_alloc: word(9),
            fwd_cnt: word(10),
            ..Self::new((word(7) >> 16) as u16, (cid(0), word(4)), (cid(2), word(5)))
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let cids = [self.src_cid, self.dst_cid].map(u64::to_le_bytes);
        let Self { src_port, dst_port, len, flags, buf_alloc, fwd_cnt, .. } = *self;
        let what = u32::from(self.kind) | u32::from(self.op) << 16;
        let words = [src_port, dst_port, len, what, flags, buf_alloc, fwd_cnt];
        [cids.as_flattened(), words.map(u32::to_le_bytes).as_flattened()].concat()
    }

    /// What refuses this packet.
    pub fn refusal(&self) -> Self {
        let (from, to) = ((self.dst_cid, self.dst_port), (self.src_cid, self.src_port));
        Self { kind: self.kind, ..Self::new(RST, from, to) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let bytes: [u8; HEADER] = std::array::from_fn(|at| at as u8);
        let packet = Packet::parse(bytes);
        assert_eq!(packet.src_cid, 0x0706_0504_0302_0100);
        assert_eq!((packet.src_port, packet.dst_port), (0x1312_1110, 0x1716_1514));
        assert_eq!((packet.len, packet.kind, packet.op), (0x1b1a_1918, 0x1d1c, 0x1f1e));
        assert_eq!((packet.flags, packet.fwd_cnt), (0x2322_2120, 0x2b2a_2928));
        assert_eq!(packet.bytes(), bytes);
    }
}
