//! The run loop of a vCPU: it runs until an exit, which goes to a bus.

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::coalesced::CoalescedWrites;
use crate::event::{Event, EventSender, Halt};
use crate::timeline::{Access, Timeline};
use crate::worker::{StopFlag, ThreadKind, Work};

/// The address spaces that all CPUs of a machine share.
#[derive(Clone)]
pub struct Buses {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped registers.
    pub mmio: Arc<Bus>,
    /// The writes that KVM collects, where it can.
    pub coalesced: Option<Arc<CoalescedWrites>>,
}

impl Buses {
    /// Executes the writes that KVM has collected.
    pub fn flush_coalesced_writes(&self) {
        if let Some(coalesced) = &self.coalesced {
            coalesced.drain(|write| {
                let bus = if write.is_port { &self.ports } else { &self.mmio };
                bus.write(write.address, write.data());
            });
        }
    }
}

/// A vCPU.
pub struct Vcpu {
    /// Its file descriptor.
    pub fd: VcpuFd,
    /// 0 is the boot CPU.
    pub index: u32,
    /// The devices for its exits.
    pub buses: Buses,
    /// Gets the guest's end.
    pub events: EventSender,
    /// Gets the vCPU's exits.
    pub timeline: Timeline,
    /// Processor time of the vCPU's threads, without the present one.
    pub cpu_time: Duration,
    /// It is stopped, and the guest sees what its last instruction did.
    pub is_between_instructions: bool,
}

/// What a vCPU came back with.
enum Entered {
    /// An exit that was served.
    Exit,
    /// None: a signal, or a stop.
    Interrupted,
    /// The guest's end.
    Halt(Halt),
}

/// Most exits of one instruction: KVM goes back into the guest after 1,024 bytes of a string (x86_emulate_insn,
/// arch/x86/kvm/emulate.c).
const MOST_EXITS: u32 = 2048;

impl Work for Vcpu {
    fn name(&self) -> String {
        format!("vcpu{}", self.index)
    }

    fn kind(&self) -> ThreadKind {
        ThreadKind::Vcpu
    }

    fn cpu_time(&mut self) -> Option<&mut Duration> {
        Some(&mut self.cpu_time)
    }

    fn run(&mut self, stop: &StopFlag) {
        while !stop.is_set() {
            if let Entered::Halt(halt) = self.run_once() {
                return self.events.send(Event::Halt(halt));
            }
        }
        self.finish_instruction();
    }
}

impl Vcpu {
    /// Completes the instruction whose exit was served last: KVM does that when it is entered again, and until then the
    /// registers say that it is still to come.
    fn finish_instruction(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        let mut exits = 0..MOST_EXITS;
        self.is_between_instructions = loop {
            match self.run_once() {
                Entered::Exit if exits.next().is_some() => {}
                Entered::Exit => break false,
                Entered::Interrupted => break true,
                Entered::Halt(halt) => {
                    self.events.send(Event::Halt(halt));
                    break false;
                }
            }
        };
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Runs until the next exit, and serves it.
    fn run_once(&mut self) -> Entered {
        let internal = |what: String| Entered::Halt(Halt::Internal(what));
        let exit = self.fd.run();
        self.buses.flush_coalesced_writes();
        match exit {
            Ok(VcpuExit::IoOut(port, data)) => {
                self.timeline.exited(Access::Out(port));
                if let [_] = data {
                    self.buses.ports.write(port.into(), data);
                } else {
                    // One access, or many by a string instruction.
                    let data = data.to_vec();
                    let size = access_size(self.fd.get_kvm_run());
                    data.chunks(size).for_each(|data| self.buses.ports.write(port.into(), data));
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.timeline.exited(Access::In(port));
                // More bytes than a port is wide: a string instruction reads byte after byte.
                let size = if data.len() > 4 { 1 } else { data.len().max(1) };
                data.chunks_mut(size).for_each(|data| self.buses.ports.read(port.into(), data));
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.timeline.exited(Access::Read(address));
                self.buses.mmio.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.timeline.exited(Access::Write(address));
                self.buses.mmio.write(address, data);
            }
            Ok(VcpuExit::Shutdown) => return Entered::Halt(Halt::TripleFault),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return internal(format!(
                    "KVM cannot enter the guest, hardware reason {reason:#x}"
                ));
            }
            Ok(VcpuExit::InternalError) => {
                let run = self.fd.get_kvm_run();
                // SAFETY: KVM filled in this member of the union: the exit reason says so.
                let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
                let at = self.fd.get_regs().map_or(0, |regs| regs.rip);
                return internal(format!("KVM cannot go on (suberror {suberror}) at {at:#x}"));
            }
            Ok(other) => return internal(format!("unexpected KVM exit {other:?}")),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                return Entered::Interrupted;
            }
            Err(error) => return internal(format!("KVM_RUN on CPU {}: {error}", self.index)),
        }
        Entered::Exit
    }
}

/// Bytes of each access of a port exit.
fn access_size(run: &kvm_run) -> usize {
    // SAFETY: KVM filled in this member of the union: the exit was one of port I/O.
    let io = unsafe { run.__bindgen_anon_1.io };
    io.size.max(1).into()
}
