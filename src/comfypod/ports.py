from comfypod.host.ports import ensure_free as ensure_free
