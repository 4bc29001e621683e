from isanet.tools.serve import serve

serve(host="0.0.0.0", port=7860)
