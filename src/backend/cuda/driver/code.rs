//! The embedded kernels in the driver's hands: one module a file, one function a symbol.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction_attribute};
use cudarc::driver::{CudaContext, result};

use super::super::embedded;
use super::checks::fault;
use crate::{Error, Result};

/// Dynamic shared memory that a kernel may have without being told so before.
const SHARED_BYTES_UNASKED: usize = 48 << 10;

/// A kernel, ready to start.
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that it may be started with.
    shared_bytes: usize,
}

/// All kernels of this binary, loaded into one context.
pub(super) struct Code {
    functions: HashMap<String, Function>,
    modules: Vec<sys::CUmodule>,
    context: Arc<CudaContext>,
    /// What one block may have on this GPU.
    most_shared_bytes: usize,
}

impl Code {
    /// Loads everything, functions too: recording a graph leaves no room for it later.
    pub fn load(context: &Arc<CudaContext>, most_shared_bytes: usize) -> Result<Self> {
        let mut code = Code {
            functions: HashMap::new(),
            modules: Vec::new(),
            context: context.clone(),
            most_shared_bytes,
        };
        for file in embedded::kernels() {
            code.load_file(file)?;
        }
        Ok(code)
    }

    fn load_file(&mut self, file: &embedded::EmbeddedFile) -> Result<()> {
        let loading = |e| fault(&format!("loading the kernels of {}.cu", file.name), e);
        self.context.bind_to_thread().map_err(loading)?;
        // SAFETY: the image is a whole fatbin, which carries its own size, and stays for ever; the context
        // is current.
        let module = unsafe { result::module::load_data(file.image.as_ptr().cast()) };
        let module = module.map_err(loading)?;
        self.modules.push(module);
        for kernel in file.resources().into_iter().map(|resources| resources.kernel) {
            let symbol = CString::new(kernel.as_str())
                .map_err(|e| Error::Device(format!("kernel {kernel:?}: {e}")))?;
            // SAFETY: the module has just been loaded and lives as long as `self`.
            let handle =
                unsafe { result::module::get_function(module, symbol) }.map_err(loading)?;
            let function = Function { handle, shared_bytes: SHARED_BYTES_UNASKED };
            self.functions.insert(kernel, function);
        }
        Ok(())
    }

    /// The kernel of that symbol, allowed `shared_bytes` of dynamic shared memory.
    pub fn function(&mut self, kernel: &str, shared_bytes: usize) -> Result<sys::CUfunction> {
        let most = self.most_shared_bytes;
        if shared_bytes > most {
            return Err(Error::Device(format!(
                "kernel {kernel} needs {shared_bytes} bytes of shared memory a block, this GPU has {most}"
            )));
        }
        let Some(function) = self.functions.get_mut(kernel) else {
            return Err(Error::Device(format!("there is no kernel {kernel} in this program")));
        };
        if shared_bytes > function.shared_bytes {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function's module is loaded; the value was found to fit a C int above, being no
            // larger than an attribute that is one.
            unsafe {
                result::function::set_function_attribute(
                    function.handle,
                    attribute,
                    shared_bytes as i32,
                )
            }
            .map_err(|e| {
                fault(&format!("giving {kernel} {shared_bytes} bytes of shared memory"), e)
            })?;
            function.shared_bytes = shared_bytes;
        }
        Ok(function.handle)
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure.
        let _ = self.context.bind_to_thread();
        for module in self.modules.drain(..) {
            // SAFETY: the module was loaded by `load_file`; its functions go with `self`, and the device
            // has waited for their launches.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}
