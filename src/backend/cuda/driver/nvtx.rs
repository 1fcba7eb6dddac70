//! Named ranges for profilers, by NVTX 3 (NVIDIA Tools Extension): Nsight Systems shows them above the kernels,
//! Nsight Compute selects by them.
//!
//! The library is looked for when the program runs; without it, or without a profiler, nothing happens.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};

use libloading::Library;

/// The first is CUDA 13's, the second that of toolkits before 12.9.
const LIBRARIES: [&str; 2] = ["libnvtx3interop.so.1", "libnvToolsExt.so.1"];

/// All names of ours are in it: `ncu --nvtx-include "frostline@backward/"`.
const DOMAIN: &std::ffi::CStr = c"frostline";

/// `nvtxEventAttributes_t` of version 3.
#[repr(C)]
struct EventAttributes {
    version: u16,
    size: u16,
    category: u32,
    color_type: c_int,
    color: u32,
    payload_type: c_int,
    reserved: c_int,
    payload: u64,
    message_type: c_int,
    message: *mut c_void,
}

const _: () = assert!(size_of::<EventAttributes>() == 48);

const VERSION: u16 = 3;
const MESSAGE_TYPE_REGISTERED: c_int = 3;

type DomainCreate = unsafe extern "C" fn(*const c_char) -> *mut c_void;
type DomainRegisterString = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
type DomainRangePush = unsafe extern "C" fn(*mut c_void, *const EventAttributes) -> c_int;
type DomainRangePop = unsafe extern "C" fn(*mut c_void) -> c_int;

/// The library, and the handles that it gave.
pub struct Nvtx {
    domain: *mut c_void,
    /// Registered names, which `nsys profile --capture-range=nvtx` needs.
    names: HashMap<String, *mut c_void>,
    register: DomainRegisterString,
    push: DomainRangePush,
    pop: DomainRangePop,
    /// The functions above are its own: dropped last.
    _library: Library,
}

impl Nvtx {
    /// The library of this machine, if there is one.
    pub fn load() -> Option<Nvtx> {
        LIBRARIES.into_iter().find_map(Nvtx::open)
    }

    fn open(name: &str) -> Option<Nvtx> {
        // SAFETY: these libraries run no initialisers but the C runtime's.
        let library = unsafe { Library::new(name) }.ok()?;
        // SAFETY: the functions have these types in every NVTX 3, as its header nvToolsExt.h declares them.
        let (create, register, push, pop) = unsafe {
            (
                *library.get::<DomainCreate>(b"nvtxDomainCreateA\0").ok()?,
                *library.get::<DomainRegisterString>(b"nvtxDomainRegisterStringA\0").ok()?,
                *library.get::<DomainRangePush>(b"nvtxDomainRangePushEx\0").ok()?,
                *library.get::<DomainRangePop>(b"nvtxDomainRangePop\0").ok()?,
            )
        };
        // SAFETY: the name is a C string. Without a profiler the domain is null, which the calls below take.
        let domain = unsafe { create(DOMAIN.as_ptr()) };
        Some(Nvtx { domain, names: HashMap::new(), register, push, pop, _library: library })
    }

    /// Begins a range on this thread.
    pub fn push(&mut self, name: &str) {
        let message = match self.names.get(name) {
            Some(handle) => *handle,
            None => {
                // Names are ours and hold no zero byte; one that did would be shown as nothing.
                let text = CString::new(name).unwrap_or_default();
                // SAFETY: the domain is the library's, and the text a C string, of which it keeps a copy.
                let handle = unsafe { (self.register)(self.domain, text.as_ptr()) };
                self.names.insert(name.to_owned(), handle);
                handle
            }
        };
        let attributes = EventAttributes {
            version: VERSION,
            size: size_of::<EventAttributes>() as u16,
            category: 0,
            color_type: 0,
            color: 0,
            payload_type: 0,
            reserved: 0,
            payload: 0,
            message_type: MESSAGE_TYPE_REGISTERED,
            message,
        };
        // SAFETY: the attributes are of the version and size that they say, and outlive the call.
        unsafe { (self.push)(self.domain, &attributes) };
    }

    /// Ends the range that began last on this thread.
    pub fn pop(&mut self) {
        // SAFETY: the domain is the library's.
        unsafe { (self.pop)(self.domain) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A library with NVTX's functions that writes down what it is told.
    #[cfg(feature = "emulator")]
    const LIBRARY: &str = r#"
        #include <stdint.h>
        #include <stdio.h>
        #include <string.h>
        static char log_text[256];
        static char strings[8][32];
        static int n_strings;
        struct Attributes {
            uint16_t version, size; uint32_t category; int32_t color_type; uint32_t color;
            int32_t payload_type, reserved; uint64_t payload; int32_t message_type; const char *message;
        };
        static void write_down(const char *what, const char *name) {
            snprintf(log_text + strlen(log_text), sizeof log_text - strlen(log_text), "%s %s;", what, name);
        }
        void *nvtxDomainCreateA(const char *name) { write_down("domain", name); return log_text; }
        void *nvtxDomainRegisterStringA(void *domain, const char *text) {
            write_down(domain == log_text ? "string" : "stray", text);
            return strcpy(strings[n_strings++], text);
        }
        int nvtxDomainRangePushEx(void *domain, const struct Attributes *event) {
            int holds = domain == log_text && event->version == 3 && event->size == 48 && event->message_type == 3;
            write_down(holds ? "push" : "wrong", event->message);
            return 0;
        }
        int nvtxDomainRangePop(void *domain) { write_down("pop", domain == log_text ? "" : "stray"); return 0; }
        const char *written(void) { return log_text; }
    "#;

    #[cfg(feature = "emulator")]
    #[test]
    fn ranges_reach_the_library_under_registered_names() {
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("nvtx.c"), folder.path().join("libnvtx.so"));
        std::fs::write(&source, LIBRARY).unwrap();
        let mut compiler = std::process::Command::new(std::env::var("CC").unwrap_or("cc".into()));
        compiler.args(["-shared", "-fPIC", "-o"]).args([&library, &source]);
        assert!(compiler.status().unwrap().success());
        let mut nvtx = Nvtx::open(library.to_str().unwrap()).unwrap();
        nvtx.push("step");
        nvtx.push("forward");
        nvtx.pop();
        nvtx.push("forward");
        nvtx.pop();
        nvtx.pop();
        // SAFETY: the function is the one above, whose text lives as long as the library.
        let written = unsafe {
            let written: unsafe extern "C" fn() -> *const c_char =
                *nvtx._library.get(b"written\0").unwrap();
            std::ffi::CStr::from_ptr(written()).to_str().unwrap().to_owned()
        };
        assert_eq!(
            written,
            "domain frostline;string step;push step;string forward;push forward;pop ;push forward;pop ;pop ;"
        );
    }

    #[test]
    fn no_library_is_no_error() {
        assert!(Nvtx::open("libnvtx-of-no-machine.so").is_none());
    }
}
