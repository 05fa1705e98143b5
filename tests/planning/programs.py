"""Small programs in the words of XLA's compilers, cut out of real ones."""

LOOP = """\
HloModule step, is_scheduled=true

%fused_lt (param_0: s32[], param_1: s32[]) -> pred[] {
  %param_0 = s32[]{:T(128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  ROOT %lt.1 = pred[]{:T(512)} compare(%param_0, %param_1), direction=LT
}

%slice_layer (param_0: bf16[32,64,128], param_1: s32[]) -> bf16[64,128] {
  %param_0.1 = bf16[32,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %dynamic-slice.1 = bf16[1,64,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%param_0.1, \
%param_1.1, %zero, /*index=3*/%zero), dynamic_slice_sizes={1,64,128}
  ROOT %bitcast.1 = bf16[64,128]{1,0:T(8,128)(2,1)} bitcast(%dynamic-slice.1)
}

%product (param_0: bf16[256,64], param_1: bf16[64,128]) -> bf16[256,128] {
  %param_0.2 = bf16[256,64]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.2 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[256,128]{1,0:T(8,128)(2,1)} convolution(%param_0.2, \
%param_1.2), dim_labels=bf_io->bf, metadata={op_name="jit(step)/jvp()/mlp/dot_general"}
}

%store (param_0: bf16[32,256,128], param_1: s32[], param_2: bf16[256,128]) -> \
bf16[32,256,128] {
  %param_0.3 = bf16[32,256,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1.3 = s32[]{:T(128)} parameter(1)
  %param_2.3 = bf16[256,128]{1,0:T(8,128)(2,1)} parameter(2)
  %zero.1 = s32[]{:T(128)} constant(0)
  %bitcast.3 = bf16[1,256,128]{2,1,0:T(8,128)(2,1)} bitcast(%param_2.3)
  ROOT %dynamic-update-slice.1 = bf16[32,256,128]{2,1,0:T(8,128)(2,1)} \
dynamic-update-slice(%param_0.3, %bitcast.3, %param_1.3, %zero.1, %zero.1)
}

%condition (param: (s32[], bf16[256,64], bf16[32,64,128], bf16[32,256,128])) -> pred[] {
  %bound = s32[]{:T(128)} constant(32)
  %param = (s32[]{:T(128)}, bf16[256,64]{1,0:T(8,128)(2,1)}, \
bf16[32,64,128]{2,1,0:T(8,128)(2,1)}, bf16[32,256,128]{2,1,0:T(8,128)(2,1)}) \
parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%param), index=0
  ROOT %less = pred[]{:T(512)} fusion(%turn, %bound), kind=kLoop, calls=%fused_lt
}

%body (param.1: (s32[], bf16[256,64], bf16[32,64,128], bf16[32,256,128])) -> (s32[], \
bf16[256,64], bf16[32,64,128], bf16[32,256,128]) {
  %param.1 = (s32[]{:T(128)}, bf16[256,64]{1,0:T(8,128)(2,1)}, \
bf16[32,64,128]{2,1,0:T(8,128)(2,1)}, \
/*index=3*/bf16[32,256,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %turn.1 = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  %x = bf16[256,64]{1,0:T(8,128)(2,1)} get-tuple-element(%param.1), index=1
  %stack = bf16[32,64,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%param.1), index=2
  %kept = bf16[32,256,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%param.1), index=3
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%turn.1, %one)
  %layer = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} fusion(%stack, %turn.1), kind=kLoop, \
calls=%slice_layer
  %y = bf16[256,128]{1,0:T(8,128)(2,1)} fusion(%x, %layer), kind=kOutput, \
calls=%product, metadata={op_name="jit(step)/jvp()/mlp/dot_general"}, \
backend_config={"window_config":{"estimated_cycles":"700"}}
  %stored = bf16[32,256,128]{2,1,0:T(8,128)(2,1)} fusion(%kept, %turn.1, %y), \
kind=kLoop, calls=%store
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[256,64]{1,0:T(8,128)(2,1)}, \
bf16[32,64,128]{2,1,0:T(8,128)(2,1)}, bf16[32,256,128]{2,1,0:T(8,128)(2,1)}) \
tuple(%next, %x, %stack, %stored)
}

ENTRY %main (a: bf16[256,64], b: bf16[32,64,128]) -> bf16[32,256,128] {
  %a = bf16[256,64]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[32,64,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %none = s32[]{:T(128)} constant(0)
  %begin = s32[]{:T(128)} copy(%none)
  %empty = bf16[32,256,128]{2,1,0:T(8,128)(2,1)} custom-call(), \
custom_call_target="AllocateBuffer", metadata={op_name="jit(step)/jvp()/broadcast"}
  %tuple = (s32[]{:T(128)}, bf16[256,64]{1,0:T(8,128)(2,1)}, \
bf16[32,64,128]{2,1,0:T(8,128)(2,1)}, bf16[32,256,128]{2,1,0:T(8,128)(2,1)}) \
tuple(%begin, %a, %b, %empty)
  %while = (s32[]{:T(128)}, bf16[256,64]{1,0:T(8,128)(2,1)}, \
bf16[32,64,128]{2,1,0:T(8,128)(2,1)}, bf16[32,256,128]{2,1,0:T(8,128)(2,1)}) \
while(%tuple), condition=%condition, body=%body
  ROOT %result = bf16[32,256,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%while), \
index=3
}
"""
"""A scan over 32 layers on a TPU: slice a layer, multiply, keep the result."""


def entry(lines: str, before: str = "") -> str:
    """A program of one computation, whose lines are given, and those it calls."""
    return f"HloModule m, is_scheduled=true\n\n{before}\nENTRY %main () -> f32[] {{\n\
{lines}\n}}\n"
