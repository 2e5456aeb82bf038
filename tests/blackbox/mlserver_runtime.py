"""A custom MLServer runtime: an ONNX file, run by onnxruntime.

MLServer imports this file by its name from the folder the tests copy it to.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxRuntime(MLModel):
    async def load(self) -> bool:
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        told = self.settings.outputs or self._session.get_outputs()
        names = [output.name for output in told]
        given = self._session.run(None, {"images": images})
        outputs = [
            NumpyCodec.encode_output(name, values)
            for name, values in zip(names, given, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
