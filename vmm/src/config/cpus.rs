//! The number of processors, and their topology.

use std::fmt;
use std::str::FromStr;

use super::text::{counted, ensure_once};

/// A processor topology. `count() == sockets * cores * threads`, all at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// Processor packages.
    pub sockets: u32,
    /// Cores in each socket.
    pub cores: u32,
    /// Threads in each core.
    pub threads: u32,
}

impl Cpus {
    /// Number of virtual CPUs.
    pub const fn count(self) -> u32 {
        self.sockets * self.cores * self.threads
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let number = |text: &str| match text.parse::<u32>() {
            Ok(0) => Err("at least 1 is needed".to_owned()),
            Ok(n) if n <= 1 << 16 => Ok(n),
            _ => Err(format!("'{text}' is not a number of CPUs, say one as in 4")),
        };
        let count = number(parts.next().unwrap_or_default())?;
        ensure_once(parts.clone())?;
        let (mut sockets, mut cores, mut threads) = (None, None, None);
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let field = match key {
                "sockets" => &mut sockets,
                "cores" => &mut cores,
                "threads" => &mut threads,
                _ => return Err(format!("'{key}' is not one of sockets, cores, threads")),
            };
            if value.is_empty() {
                return Err(format!("{key}: say how many, as in {key}=2"));
            }
            *field = Some(number(value)?);
        }
        let (sockets, threads) = (sockets.unwrap_or(1), threads.unwrap_or(1));
        let cores = cores.unwrap_or(count / sockets.saturating_mul(threads).clamp(1, count));
        let product: u64 = [sockets, cores, threads].map(u64::from).iter().product();
        if product != u64::from(count) {
            let [sockets, cores, threads, product, count] = [
                (u64::from(sockets), "socket"),
                (u64::from(cores), "core"),
                (u64::from(threads), "thread"),
                (product, "CPU"),
                (u64::from(count), "CPU"),
            ]
            .map(|(number, what)| counted(number, what));
            return Err(format!("{sockets} x {cores} x {threads} = {product}, not {count}"));
        }
        Ok(Self { sockets, cores, threads })
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { sockets, cores, threads } = self;
        write!(f, "{}", self.count())?;
        match self {
            Self { sockets: 1, threads: 1, .. } => Ok(()),
            _ => write!(f, ",sockets={sockets},cores={cores},threads={threads}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_left_out_are_worked_out() {
        for (text, sockets, cores, threads) in [
            ("4", 1, 4, 1),
            ("4,sockets=1,cores=2,threads=2", 1, 2, 2),
            ("8,threads=2", 1, 4, 2),
            ("8,sockets=2", 2, 4, 1),
            ("8,sockets=4,threads=2", 4, 1, 2),
        ] {
            let cpus: Cpus = text.parse().unwrap();
            assert_eq!(cpus, Cpus { sockets, cores, threads }, "{text}");
            assert_eq!(cpus.to_string().parse(), Ok(cpus));
        }
        for text in [
            "",
            "0",
            "x",
            "4,cores=3",
            "8,cores=2",
            "4,legs=2",
            "4,cores=0",
            "4,cores",
            "2,cores=1,cores=2",
            "70000",
        ] {
            text.parse::<Cpus>().unwrap_err();
        }
    }

    #[test]
    fn a_topology_that_does_not_add_up_is_said_in_numbers() {
        for (text, why) in [
            ("1,cores=3", "1 socket x 3 cores x 1 thread = 3 CPUs, not 1 CPU"),
            ("4,sockets=2,threads=1,cores=1", "2 sockets x 1 core x 1 thread = 2 CPUs, not 4 CPUs"),
            ("4,cores", "cores: say how many, as in cores=2"),
        ] {
            assert_eq!(text.parse::<Cpus>(), Err(why.to_owned()));
        }
    }
}
