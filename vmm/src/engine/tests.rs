//! Both ways of doing jobs do the same.

use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::memory::buffers::Buffers;
use crate::memory::{self, GuestRam};

const LEN: u64 = 1 << 20;

/// An engine with a ring, if the host has it, and one with threads.
fn engines() -> Vec<Engine> {
    let ring = Ring::new().map(|ring| Arc::new(Mutex::new(ring)));
    if let Err(error) = &ring {
        eprintln!("skipped: no io_uring: {error}");
    }
    let rings = ring.iter().map(|ring| Engine::new(Some(ring)).unwrap());
    rings.chain([Engine::new(None).unwrap()]).collect()
}

struct Bench {
    ram: Arc<GuestRam>,
    file: TempFile,
    opened: Arc<File>,
}

impl Bench {
    fn new() -> Self {
        let file = TempFile::new().unwrap();
        file.as_file().set_len(LEN).unwrap();
        let opened = File::options().read(true).write(true).open(file.as_path()).unwrap().into();
        Self { ram: Arc::new(memory::of_ranges(&[(0, LEN)])), file, opened }
    }

    /// A job with `len` bytes at `at` of RAM, in two pieces.
    fn job(&self, kind: Kind, key: u32, at: u64, offset: u64, len: usize) -> Job {
        let mut buffers = Buffers::default();
        for (start, len) in [(at, len / 3), (at + len as u64 / 3, len - len / 3)] {
            let slices = self.ram.get_slices(GuestAddress(start), len);
            slices.for_each(|slice| buffers.push(slice.unwrap()));
        }
        let memory = Held::new(buffers, &self.ram).unwrap();
        Job { key, kind, file: self.opened.clone(), offset, memory, cached: false }
    }
}

/// Waits for all jobs of `engine`; returns their keys, sorted, and how they ended.
fn finish(engine: &mut Engine) -> Vec<(u32, io::Result<()>)> {
    let mut ended = Vec::new();
    while engine.jobs() > 0 {
        match engine.finished().unwrap() {
            Some((job, result)) => ended.push((job.key, result)),
            None => _ = poll(&mut [PollFd::new(&*engine, PollFlags::IN)], None).unwrap(),
        }
    }
    ended.sort_by_key(|(key, _)| *key);
    ended
}

#[test]
fn many_jobs_at_a_time_each_end_once_and_move_their_own_bytes() {
    for mut engine in engines() {
        let bench = Bench::new();
        let contents: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
        bench.ram.write_slice(&contents, GuestAddress(0)).unwrap();
        let piece = LEN / MAX_JOBS as u64;
        for kind in [Kind::Write, Kind::Read] {
            for key in 0..MAX_JOBS as u32 {
                let at = u64::from(key) * piece;
                // Written to where it is not, and read back to where it was.
                engine.start(bench.job(kind, key, at, LEN - piece - at, piece as usize));
            }
            engine.submit().unwrap();
            let ended = finish(&mut engine);
            assert!(ended.iter().map(|(key, _)| *key).eq(0..MAX_JOBS as u32));
            assert!(ended.iter().all(|(_, result)| result.is_ok()), "{ended:?}");
            if kind == Kind::Write {
                bench.ram.write_slice(&vec![0; LEN as usize], GuestAddress(0)).unwrap();
            }
        }
        let mut found = vec![0; LEN as usize];
        bench.ram.read_slice(&mut found, GuestAddress(0)).unwrap();
        assert!(found == contents);
    }
}

#[test]
fn an_error_is_that_of_its_job_alone() {
    for mut engine in engines() {
        let bench = Bench::new();
        engine.start(bench.job(Kind::Read, 1, 0, LEN - 512, 1024)); // half of it is past the end
        engine.start(bench.job(Kind::Read, 2, 4096, 0, 4096));
        engine.start(bench.job(Kind::Flush, 3, 0, 0, 0));
        let read_only = File::open(bench.file.as_path()).unwrap().into();
        engine.start(Job { file: read_only, ..bench.job(Kind::Write, 4, 0, 0, 512) });
        engine.submit().unwrap();
        let ended = finish(&mut engine);
        let errors: Vec<_> = ended
            .iter()
            .map(|(key, result)| (*key, result.as_ref().err().map(|e| e.kind())))
            .collect();
        let bad_descriptor = io::Error::from_raw_os_error(libc::EBADF).kind();
        let eof = io::ErrorKind::UnexpectedEof;
        assert_eq!(errors, [(1, Some(eof)), (2, None), (3, None), (4, Some(bad_descriptor))]);
    }
}

#[test]
fn a_full_device_fails_its_writes_and_no_others() {
    for mut engine in engines() {
        let bench = Bench::new();
        let full = File::options().write(true).open("/dev/full").unwrap().into();
        engine.start(Job { file: full, ..bench.job(Kind::Write, 1, 0, 0, 4096) });
        engine.start(bench.job(Kind::Write, 2, 0, 0, 4096));
        engine.submit().unwrap();
        let [(1, Err(error)), (2, Ok(()))] = &finish(&mut engine)[..] else { panic!() };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}

#[test]
fn a_ring_with_a_job_that_hangs_is_not_used_again_and_its_memory_stays() {
    let Ok(ring) = Ring::new().map(|ring| Arc::new(Mutex::new(ring))) else {
        return eprintln!("skipped: no io_uring");
    };
    let (bench, pipe) = (Bench::new(), io::pipe().unwrap());
    let mut engine = Engine::new(Some(&ring)).unwrap();
    let read_end: File = OwnedFd::from(pipe.0).into();
    let hangs = bench.job(Kind::Read, 1, 0, 0, 512);
    engine.start(Job { file: read_end.into(), ..hangs });
    engine.submit().unwrap();
    assert!(engine.finished().unwrap().is_none());
    drop(engine);
    let mut other = Engine::new(Some(&ring)).unwrap();
    other.start(bench.job(Kind::Write, 2, 0, 0, 512));
    other.submit().unwrap();
    assert!(matches!(finish(&mut other)[..], [(2, Ok(()))]));
    let ram = Arc::downgrade(&bench.ram);
    drop((bench, other, ring));
    assert!(ram.upgrade().is_some(), "the kernel may still write to it");
}

#[test]
fn memory_that_is_elsewhere_is_not_held() {
    let (bench, other) = (Bench::new(), Arc::new(memory::of_ranges(&[(0, 4096)])));
    let slice = bench.ram.get_slices(GuestAddress(0), 512).next().unwrap().unwrap();
    assert!(Held::new(slice.into(), &other).is_none());
}

#[test]
fn the_descriptor_is_readable_only_while_a_job_is_done() {
    for mut engine in engines() {
        let bench = Bench::new();
        for round in 0..1000 {
            for key in 0..4 {
                engine.start(bench.job(Kind::Read, key, 0, 0, 512));
            }
            engine.submit().unwrap();
            // The owner also asks without having waited.
            while engine.jobs() > 0 {
                engine.finished().unwrap();
            }
            let mut done = [PollFd::new(&engine, PollFlags::IN)];
            std::thread::sleep(std::time::Duration::from_micros(50));
            let readable = poll(&mut done, Some(&Default::default())).unwrap();
            assert_eq!(readable, 0, "round {round}: its owner would ask for ever");
        }
    }
}
