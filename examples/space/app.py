"""The page of `isanet serve` as a Hugging Face Space."""

from isanet.tools.serve import serve

serve(host="0.0.0.0", port=7860)
