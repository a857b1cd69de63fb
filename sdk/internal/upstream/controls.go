package upstream

import "strings"

// controlRoutes are the routes by which an engine is commanded, watched or looked into, of each engine that its documentation or
// source names. They are passed on under no prefix, in whatever case they are written, and neither is what is below them. Those of the
// APIs are served by name, so that a control route which an engine gets tomorrow is not served either.
//
// The sources: vLLM docs/usage/security.md and vllm/entrypoints/serve; SGLang python/sglang/srt/entrypoints/http_server.py;
// llama.cpp tools/server/server.cpp; TGI router/src/server.rs; ollama server/routes.go.
var controlRoutes = map[string][]string{
	"any": {
		"/docs", "/redoc", "/openapi.json", "/metrics", "/debug", "/health", "/ping", "/version", "/load",
	},
	"vllm": {
		"/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/sleep", "/wake_up", "/is_sleeping", "/reconfigure",
		"/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/collective_rpc", "/server_info", "/pause", "/resume",
		"/is_paused", "/abort_requests", "/scale_elastic_ep", "/is_scaling_elastic_ep", "/init_weight_transfer_engine",
		"/start_weight_update", "/start_draft_weight_update", "/update_weights", "/finish_weight_update", "/update_weight_version",
		"/weight_info", "/weight_checker", "/get_world_size", "/start_profile", "/stop_profile", "/tokenize", "/detokenize",
		"/tokenizer_info", "/invocations", "/fault_tolerance", "/inference/v1/generate",
	},
	"sglang": {
		"/flush_cache", "/clear_hicache_storage_backend", "/get_model_info", "/get_server_info", "/model_info", "/server_info",
		"/get_load", "/set_internal_state", "/get_internal_state", "/health_generate", "/generate_from_file", "/freeze_gc",
		"/start_expert_distribution_record", "/stop_expert_distribution_record", "/dump_expert_distribution_record",
		"/update_weights_from_disk", "/update_weights_from_tensor", "/update_weights_from_distributed", "/update_weights_from_ipc",
		"/init_weights_send_group_for_remote_instance", "/send_weights_to_remote_instance", "/init_weights_update_group",
		"/destroy_weights_update_group", "/get_weights_by_name", "/release_memory_occupation", "/resume_memory_occupation",
		"/slow_down", "/load_lora_adapter", "/unload_lora_adapter", "/open_session", "/close_session", "/configure_logging",
		"/abort_request", "/pause_generation", "/continue_generation", "/v1/tokenize", "/v1/detokenize", "/vertex_generate",
	},
	"llama.cpp": {
		"/slots", "/props", "/lora-adapters", "/models", "/v1/chat/completions/control", "/v1/stream", "/v1/streams", "/v1/health",
		"/apply-template", "/cors-proxy", "/tools",
	},
	"tgi": {"/info", "/chat_tokenize", "/vertex", "/v2"},
	"ollama": {
		"/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs", "/api/ps", "/api/me", "/api/signout",
		"/api/user", "/api/status", "/api/experimental",
	},
	"openai": { // what is kept for others, and work that goes on without its request
		"/v1/files", "/v1/batches", "/v1/fine_tuning", "/v1/uploads", "/v1/assistants", "/v1/threads", "/v1/vector_stores",
		"/v1/organization",
	},
}

var controlled = func() map[string]bool {
	all := make(map[string]bool)
	for _, engine := range controlRoutes {
		for _, path := range engine {
			all[path] = true
		}
	}
	return all
}()

// controls says whether a plain path is a control route or below one.
func controls(path string) bool {
	path = strings.ToLower(path)
	for end := len(path); end > 0; end = strings.LastIndexByte(path[:end], '/') {
		if controlled[path[:end]] {
			return true
		}
	}
	return false
}
